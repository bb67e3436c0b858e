"""Learning static activation ranges in QAT."""

import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.activation_ranges import is_calibrated
from fedhq_lightning.support.views import is_range

_LEAST_SHARE = 0.05
"""Of its span when learning began; a range of none would count as not calibrated."""


class RangeLearner:
    """Trains the ranges of one module by the gradients of its loss, with an optimizer of its own.

    The user's optimizer does not know ranges, and would not suit them: one learning rate for a range of 0.1 and one of
    100, weight decay that closes them, momentum tuned for weights. Here both ends of a range move in shares of its
    span, by Adam, so that neither the size of the values nor that of the loss matters, and the gradient scale of LSQ
    has nothing to do.

    Args:
        module: Prepared for `qat`. Its calibrated ranges take part; they require gradients until `finish`.
        learning_rate: Adam's, in shares of a range's span: about how far an end moves in a step. 0 leaves them.

    Raises:
        ConfigurationError: A learning rate below 0.

    Source: Esser et al. 2020 (LSQ) and Bhalgat et al. 2020 (LSQ+) for the gradients; Jain et al. 2020, "Trained
    Quantization Thresholds", for Adam and for steps that are relative to the range.
    """

    def __init__(self, module: nn.Module, learning_rate: float = 0.01) -> None:
        check_range_learning_rate(learning_rate)
        held = [value for name, value in module.named_buffers() if is_range(name) and is_calibrated(value)]
        self._ranges = held if learning_rate else []
        self._starts = [each.detach().clone() for each in self._ranges]
        self._moved = [torch.zeros_like(each) for each in self._ranges]  # in shares of the span
        self._adam = torch.optim.Adam(self._moved, lr=learning_rate) if self._ranges else None
        for each in self._ranges:
            each.requires_grad_(True)

    @torch.no_grad()
    def step(self) -> None:
        """Move the ranges by the gradients that they have gathered since the last step, and empty those."""
        if self._adam is None:
            return
        for held, start, moved in zip(self._ranges, self._starts, self._moved, strict=True):
            gradient, held.grad = held.grad, None
            is_usable = gradient is not None and bool(gradient.isfinite().all())
            moved.grad = gradient * _span(start) if gradient is not None and is_usable else None
        before = [each.clone() for each in self._moved]
        self._adam.step()
        for held, start, moved, last in zip(self._ranges, self._starts, self._moved, before, strict=True):
            span = _span(start)
            moved[0].clamp_(max=float(-start[0] / span))
            moved[1].clamp_(min=float(-start[1] / span))
            if 1 + moved[1] - moved[0] < _LEAST_SHARE:
                moved.copy_(last)
            held.copy_(start + moved * span)

    def finish(self) -> None:
        """Leave the ranges as plain buffers, where they are now."""
        for each in self._ranges:
            each.grad = None
            each.requires_grad_(False)


def check_range_learning_rate(learning_rate: float) -> None:
    """Refuse a learning rate that ranges cannot have.

    Raises:
        ConfigurationError: It is below 0, or not a number.
    """
    if not learning_rate >= 0:
        raise ConfigurationError(
            f"range_lr {learning_rate}: must be 0 or more, in shares of a range's span to a step; 0.01 is the default, "
            "0 leaves static ranges as they were calibrated"
        )


def _span(activation_range: Tensor) -> Tensor:
    return activation_range[1] - activation_range[0]
