"""Clients' examples per class, from the labels of all."""

from functools import cached_property

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from fedhq_lightning.data.columns import NamedColumn
from fedhq_lightning.data.labels import class_numbers, why_no_classes


class LabelCounts:
    """Counts the labels of some of the examples.

    Args:
        labels: Label of every example; None where they are not known.
        owner: Whose they are, for messages.
    """

    def __init__(self, labels: NamedColumn | None, owner: str) -> None:
        self._labels, self._owner = labels, owner

    def among(self, positions: NDArray[np.int64]) -> Tensor | None:
        """Examples per class, (num_classes,) int64; None where labels are not known or, with a warning, no classes."""
        if self._classes is None:
            return None
        numbers, num_classes = self._classes
        return torch.from_numpy(np.bincount(numbers[positions], minlength=num_classes).astype(np.int64))

    @cached_property
    def _classes(self) -> tuple[NDArray[np.int64], int] | None:
        labels = self._labels
        if labels is None:
            return None
        classes = class_numbers(labels.values)
        if classes is None:
            rank_zero_warn(
                f"{self._owner}: {labels.source} holds {why_no_classes(labels.values)}, so clients tell no label "
                "counts; where examples have a class, give label_fn, a function from an example to it"
            )
        return classes
