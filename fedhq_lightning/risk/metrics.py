"""The statistics of the data analysis as torchmetrics metrics, for data that arrive in batches or on several processes.

Each is a thin state around a function: `label_divergence`, `label_coverage`, and a ratio of two sums.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.risk.divergence import Coverage, DivergenceMeasure, label_coverage, label_divergence


class _LabelMetric(Metric):
    """Counts labels; subclasses say which statistic of the counts they are."""

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    counts: Tensor

    def __init__(self, reference: Tensor, statistic: Callable[[Tensor, Tensor], float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        reference = torch.as_tensor(reference).detach().clone()
        # What is wrong with the reference or the statistic's name shows at once.
        statistic(torch.ones_like(reference, dtype=torch.float64), reference)
        self._statistic = statistic
        self.register_buffer("reference", reference, persistent=False)
        self.add_state("counts", torch.zeros(len(reference), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, target: Tensor) -> None:
        """Count the labels of one batch.

        Args:
            target: Class numbers, 0 to num_classes - 1, of any shape; an integer dtype.

        Raises:
            ConfigurationError: A label of another kind or beyond the reference's classes.
        """
        num_classes = len(self.counts)
        if target.is_floating_point() or target.is_complex():
            raise ConfigurationError(f"{type(self).__name__}: labels of {target.dtype}; give class numbers")
        if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < num_classes:
            raise ConfigurationError(
                f"{type(self).__name__}: labels {int(target.min())} to {int(target.max())}; the reference has classes "
                f"0 to {num_classes - 1}"
            )
        self.counts += torch.bincount(target.flatten().long(), minlength=num_classes)

    def compute(self) -> Tensor:
        """The statistic of all labels so far, a scalar.

        Raises:
            ConfigurationError: No label yet.
        """
        reference = self.get_buffer("reference")
        return torch.tensor(self._statistic(self.counts, reference), device=self.counts.device)


class LabelDivergence(_LabelMetric):
    """Distance between the labels of one client and a reference mix, 0 to 1.

    Several processes that each hold a part of the client's data add up their counts.

    Args:
        reference: (num_classes,) examples per class of everybody, or their shares.
        measure: As for `label_divergence`.
        kwargs: Of every torchmetrics metric.

    Raises:
        ConfigurationError: Unknown measure, or a reference that is no distribution.

    Example:
        >>> metric = LabelDivergence(torch.tensor([50, 50]))
        >>> metric.update(torch.tensor([0, 0, 0, 1]))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False

    def __init__(self, reference: Tensor, measure: DivergenceMeasure = "total_variation", **kwargs: Any) -> None:
        super().__init__(reference, partial(label_divergence, measure=measure), **kwargs)


class LabelCoverage(_LabelMetric):
    """How much of a reference mix one client has seen, 0 to 1.

    Args:
        reference: (num_classes,) examples per class of everybody, or their shares.
        of: As for `label_coverage`.
        kwargs: Of every torchmetrics metric.

    Raises:
        ConfigurationError: Another `of`, or a reference that is no distribution.

    Example:
        >>> metric = LabelCoverage(torch.tensor([60, 30, 10, 0]), of="mass")
        >>> metric.update(torch.tensor([1, 2, 2]))
        >>> metric.compute()
        tensor(0.4000)
    """

    higher_is_better = True

    def __init__(self, reference: Tensor, of: Coverage = "classes", **kwargs: Any) -> None:
        super().__init__(reference, partial(label_coverage, of=of), **kwargs)


class NoiseToSignalRatio(Metric):
    """Power of what quantization adds to an output, over the power of the output: 10^(-SQNR / 10), SQNR in dB.

    0 where nothing is added; infinite where there is no signal but noise; NaN where a value is not finite.

    Args:
        kwargs: Of every torchmetrics metric.

    Example:
        >>> metric = NoiseToSignalRatio()
        >>> metric.update(torch.tensor([3.0, 3.0]), torch.tensor([3.0, 4.0]))
        >>> metric.compute()
        tensor(0.0400, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    noise: Tensor
    signal: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("noise", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("signal", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the powers of one output.

        Args:
            preds: The quantized output, of any shape.
            target: The output that it stands for, of the same shape.

        Raises:
            ConfigurationError: The shapes differ.
        """
        if preds.shape != target.shape:
            raise ConfigurationError(
                f"quantized output of shape {tuple(preds.shape)} against an output of shape {tuple(target.shape)}"
            )
        exact = target.detach().to(self.signal)
        self.noise += (preds.detach().to(self.noise) - exact).square().sum()
        self.signal += exact.square().sum()

    def compute(self) -> Tensor:
        """The ratio over all outputs so far, a scalar."""
        # Of two zeros the quotient would be NaN, but nothing was added.
        return torch.where(self.noise == 0, self.noise, self.noise / self.signal)
