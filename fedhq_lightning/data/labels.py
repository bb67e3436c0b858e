"""Finding the label of every example of a dataset that we know nothing about."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from fedhq_lightning.errors import ConfigurationError

Column = NDArray[Any]
"""(num_examples,) numbers, booleans or strings."""

COLUMN_KINDS = "biufU"


def find_labels(dataset: Any, label_function: Callable[[Any], Any] | None = None) -> Column | None:
    """Labels of a dataset, in its order, or None where it gives no sign of having any.

    Looked for in this order: `label_function` of every example; the dataset's `targets`; its `labels`; the last tensor
    of a TensorDataset; all of them also below torch's Subset and ConcatDataset.

    Args:
        dataset: A map-style dataset.
        label_function: From an example, as the dataset gives it, to its label.

    Raises:
        ConfigurationError: `label_function` fails, or gives something that is not one label per example.
    """
    if label_function is not None:
        return _apply(label_function, dataset)
    return _through_wrappers(dataset, _own_labels)


def find_column(dataset: Any, name: str) -> Column | None:
    """The named column of a dataset that has named columns, as Hugging Face's do; None otherwise.

    Args:
        dataset: A map-style dataset.
        name: Column name.
    """

    def own_column(inner: Any) -> Column | None:
        return _as_column(inner[name], len(inner)) if name in getattr(inner, "column_names", ()) else None

    return _through_wrappers(dataset, own_column)


def class_numbers(labels: Column) -> tuple[NDArray[np.int64], int] | None:
    """Labels as class numbers from 0, and how many classes there are; None for labels that are not classes.

    Args:
        labels: (num_examples,) labels. Non-negative integers are their own class number; other integers, booleans and
            strings are numbered in sorted order; other numbers are not classes.
    """
    if labels.dtype.kind == "f":
        return None
    if labels.dtype.kind in "iu" and labels.size and labels.min() >= 0 and labels.max() < labels.size:
        return labels.astype(np.int64), int(labels.max()) + 1
    classes, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int64), len(classes)


def _apply(label_function: Callable[[Any], Any], dataset: Any) -> Column:
    try:
        values = [label_function(dataset[index]) for index in range(len(dataset))]
    except Exception as error:
        raise ConfigurationError(
            f"label_fn {getattr(label_function, '__name__', label_function)!r} failed on an example of "
            f"{type(dataset).__name__}: {type(error).__name__}: {error}; it is called with one example, as the dataset "
            f"gives it, and returns its label"
        ) from error
    labels = _as_column(values, len(dataset))
    if labels is None:
        raise ConfigurationError(
            f"label_fn {getattr(label_function, '__name__', label_function)!r} returned {type(values[0]).__name__}; "
            f"it must return one number or string per example"
        )
    return labels


def _through_wrappers(dataset: Any, read: Callable[[Any], Column | None]) -> Column | None:
    found = read(dataset)
    if found is not None:
        return found
    if isinstance(dataset, Subset):
        inner = _through_wrappers(dataset.dataset, read)
        return None if inner is None else inner[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [_through_wrappers(part, read) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    return None


def _own_labels(dataset: Any) -> Column | None:
    for name in ("targets", "labels"):
        column = _as_column(getattr(dataset, name, None), len(dataset))
        if column is not None:
            return column
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return _as_column(dataset.tensors[-1], len(dataset))
    return None


def _as_column(values: Any, num_examples: int) -> Column | None:
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        return None
    try:
        column = np.asarray(values if hasattr(values, "__array__") else list(values))
    except (TypeError, ValueError):
        # Ragged or otherwise no column at all, such as the boxes of a detection dataset.
        return None
    return column if column.shape == (num_examples,) and column.dtype.kind in COLUMN_KINDS else None
