"""Accuracy on each class of the held-out data, of the global model and of the deployed one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional

from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.types import StateDict

_MOST_CLASSES = 1000
_AGREES = 1e-4
"""How far a logged number may be from ours and still be the same figure: float32 sums in another order."""
_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


def per_class_accuracy(
    evaluator: Evaluator, state: StateDict, loaders: Sequence[Any], monitor: str | None
) -> dict[str, Any] | None:
    """How well each class is told, where the data and the module show classes; else None.

    The module's own validation runs once more on each model while what `forward` gives is kept beside the batch's
    labels. It is believed to be class scores only if what the module logs agrees: its accuracy (over examples, or the
    mean over the classes), its cross entropy or its negative log-likelihood.

    Args:
        evaluator: Converts and evaluates the module.
        state: The deployed round's weights.
        loaders: The server's held-out loaders; of several, the one that `monitor` is logged from is taken.
        monitor: Name of the monitored metric.

    Returns:
        `classes` (names, or numbers as text), `examples` (held-out examples of each), `fp` and `quantized` (accuracy on
        each, None where it has no example); `quantized` is None for a run without scheme.
    """
    if not loaders:
        return None
    index = int((monitor or "").partition("/dataloader_idx_")[2] or 0)
    fp = _tally(evaluator, evaluator.model(state), loaders, index, evaluator.autocast)
    if fp is None:
        return None
    quantized = None
    if evaluator.scheme is not None:
        quantized = _tally(evaluator, evaluator.deployed(state), loaders, index, nullcontext)
        if quantized is None:
            return None
    return {
        "classes": _class_names(loaders[index], len(fp.counts())),
        "examples": fp.counts(),
        "fp": fp.accuracy(),
        "quantized": None if quantized is None else quantized.accuracy(),
    }


class _Tally:
    """Hits and examples of each class, and the losses that a module may log, over the batches of one loader."""

    def __init__(self) -> None:
        self.examples: Tensor | None = None
        self.right = torch.zeros(0, dtype=torch.long)
        self._cross_entropy = self._negative_log_likelihood = 0.0

    def add(self, scores: Tensor, labels: Tensor) -> bool:
        """Take up one batch, scores (batch, num_classes) and labels (batch,); whether the two fit together."""
        num_classes = scores.shape[1]
        if self.examples is None and 2 <= num_classes <= _MOST_CLASSES:
            self.examples, self.right = torch.zeros(2, num_classes, dtype=torch.long).unbind()
        if self.examples is None or len(self.examples) != num_classes or len(scores) != len(labels):
            return False
        if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            return False
        self.examples = self.examples + torch.bincount(labels, minlength=num_classes)
        self.right = self.right + torch.bincount(labels[scores.argmax(1) == labels], minlength=num_classes)
        self._cross_entropy += float(functional.cross_entropy(scores, labels, reduction="sum"))
        self._negative_log_likelihood += float(functional.nll_loss(scores, labels, reduction="sum"))
        return True

    def accuracy(self) -> list[float | None]:
        """Of each class, None where it has no example."""
        counted = zip(self.right.tolist(), self.counts(), strict=True)
        return [hits / count if count else None for hits, count in counted]

    def counts(self) -> list[int]:
        """Examples of each class."""
        return [] if self.examples is None else [int(count) for count in self.examples.tolist()]

    def agrees_with(self, logged: Iterable[float]) -> bool:
        """Whether a logged number is one of those that follow from these scores."""
        total = sum(self.counts())
        if not total:
            return False
        present = [each for each in self.accuracy() if each is not None]
        telling = (
            int(self.right.sum()) / total,
            math.fsum(present) / len(present),
            self._cross_entropy / total,
            self._negative_log_likelihood / total,
        )
        return any(math.isclose(value, ours, abs_tol=_AGREES) for value in logged for ours in telling)


def _tally(
    evaluator: Evaluator,
    module: L.LightningModule,
    loaders: Sequence[Any],
    index: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> _Tally | None:
    """What one model tells of the classes in loader `index`, or None where its outputs are no scores of classes."""
    tally, labels, outputs = _Tally(), list[Tensor | None](), list[Tensor | None]()
    forward, fits = module.forward, True

    def kept_forward(*arguments: Any, **keywords: Any) -> Any:
        output = forward(*arguments, **keywords)
        if labels:
            outputs.append(_scores(output))
        return output

    def watched(batches: Iterable[Any]) -> Iterator[Any]:
        nonlocal fits
        for batch in batches:
            labels.append(_labels(batch))
            yield batch
            scores, true = outputs[0] if len(outputs) == 1 else None, labels[0]
            fits = fits and scores is not None and true is not None and tally.add(scores, true)
            labels.clear()
            outputs.clear()

    module.forward = kept_forward  # type: ignore[method-assign]  # on this copy only
    given = [watched(loader) if position == index else loader for position, loader in enumerate(loaders)]
    logged = evaluator.metrics_of(module, given, autocast=autocast)
    return tally if fits and tally.agrees_with(logged.values()) else None


def _scores(output: Any) -> Tensor | None:
    """(batch, num_classes) float scores on the CPU: the output itself, or its `logits`."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.dim() == 2 and logits.is_floating_point():
        return logits.detach().float().cpu()
    return None


def _labels(batch: Any) -> Tensor | None:
    """(batch,) whole numbers on the CPU: the second and last part of a batch, or its part named as labels are."""
    found: Any = None
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        found = batch[1]
    if isinstance(found, Tensor) and found.dim() == 1 and len(found) and not found.is_floating_point():
        return found.detach().long().cpu()
    return None


def _class_names(loader: Any, num_classes: int) -> list[str]:
    """As torchvision's datasets have them in `classes`; else their numbers."""
    names = getattr(getattr(loader, "dataset", None), "classes", None)
    if isinstance(names, (list, tuple)) and len(names) == num_classes:
        return [str(name) for name in names]
    return [str(number) for number in range(num_classes)]
