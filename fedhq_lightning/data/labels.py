"""Finding the label of every example of a dataset that we know nothing about; whether labels are classes."""

from collections.abc import Callable
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from fedhq_lightning.data.columns import (
    Column,
    NamedColumn,
    as_column,
    attribute_column,
    column_names,
    innermost,
    named,
    table_column,
    through_wrappers,
)
from fedhq_lightning.errors import ConfigurationError

LABEL_NAMES = ("label", "labels", "target", "targets")
"""Words that mean the label, as a column of a table or as what a partitioner goes by."""

MOST_FLOAT_CLASSES = 20
"""Different whole numbers among floats that still are classes; more are taken for a measured value."""

FEWEST_NEARLY_UNIQUE = 20
"""So many different values, or fewer, are classes however few examples there are."""


def find_labels(
    dataset: Any, label_function: Callable[[Any], Any] | None = None, named_column: str | None = None
) -> NamedColumn | None:
    """Labels of a dataset, in its order, or None where it gives no sign of having any.

    Looked for in this order: `label_function` of every example; the dataset's `targets`, then its `labels`, with its
    `target_transform` where it has one; of a TensorDataset the second of two tensors, or the only one of whole
    numbers after the first; of a Hugging Face table the only ClassLabel column, or the only one called label, labels,
    target or targets, or `named_column`. All of them, but the first, also below torch's Subset and ConcatDataset.

    Args:
        dataset: A map-style dataset.
        label_function: From an example, as the dataset gives it, to its label.
        named_column: Column of labels in a table where the others do not tell.

    Raises:
        ConfigurationError: `label_function` fails, or gives something that is not one label per example.
    """
    if label_function is not None:
        return _apply(label_function, dataset)
    return through_wrappers(dataset, lambda inner: _own_labels(inner, named_column))


def class_numbers(labels: Column) -> tuple[NDArray[np.int64], int] | None:
    """Labels as class numbers from 0, and how many classes there are; None for labels that are not classes.

    Args:
        labels: (num_examples,) labels. Non-negative whole numbers are their own class number; others, booleans and
            strings are numbered in sorted order.
    """
    if why_no_classes(labels) is not None:
        return None
    labels = whole_numbers(labels)
    if labels.dtype.kind in "iu" and labels.size and labels.min() >= 0 and labels.max() < labels.size:
        return labels.astype(np.int64), int(labels.max()) + 1
    classes, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int64), len(classes)


def whole_numbers(labels: Column) -> Column:
    """Floats that are classes as integers; other labels as they are."""
    is_float_class = labels.dtype.kind == "f" and why_no_classes(labels) is None
    return labels.astype(np.int64) if is_float_class else labels


def why_no_classes(labels: Column) -> str | None:
    """What keeps labels from being classes, or None where they are.

    Args:
        labels: (num_examples,) labels. Floats are classes where they are few whole numbers, as in a table's 0.0 and
            1.0. Nothing is where most examples have a value of their own, as an id or a length.
    """
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            return "missing or infinite numbers"
        if (labels != np.floor(labels)).any():
            return f"{labels.dtype} with fractions"
    num_values = len(np.unique(labels))
    of_how_many = f"{num_values} different values in {labels.size} examples"
    if labels.dtype.kind == "f" and num_values > MOST_FLOAT_CLASSES:
        return f"{labels.dtype} with {of_how_many}"
    return of_how_many if num_values > max(FEWEST_NEARLY_UNIQUE, labels.size // 2) else None


def _apply(label_function: Callable[[Any], Any], dataset: Any) -> NamedColumn:
    name = f"label_fn {getattr(label_function, '__name__', label_function)!r}"
    try:
        values = [label_function(dataset[index]) for index in range(len(dataset))]
    except Exception as error:
        raise ConfigurationError(
            f"{name} failed on an example of {type(innermost(dataset)).__name__}: {type(error).__name__}: {error}; it "
            f"is called with one example, as the dataset gives it, and returns its label"
        ) from error
    labels = as_column(values, len(dataset))
    if labels is None:
        odd = next((value for value in values if not _is_label(value)), values[0])
        raise ConfigurationError(
            f"{name} returned {type(odd).__name__}; it must return one number or string per example"
        )
    return NamedColumn(labels, name)


def _is_label(value: Any) -> bool:
    return isinstance(value, str | Number) or (np.size(value) == 1 and hasattr(value, "dtype"))


def _own_labels(dataset: Any, named_column: str | None) -> NamedColumn | None:
    for name in ("targets", "labels"):
        labels = attribute_column(dataset, name)
        if labels is not None:
            return _transformed(dataset, labels)
    if isinstance(dataset, TensorDataset):
        return _tensor_of_labels(dataset)
    return _column_of_labels(dataset, named_column)


def _transformed(dataset: Any, labels: NamedColumn) -> NamedColumn | None:
    """Labels as examples carry them: torchvision's datasets hold them as they are before their `target_transform`."""
    transform = getattr(dataset, "target_transform", None)
    if transform is None:
        return labels
    return named([transform(label) for label in labels.values.tolist()], len(dataset), f"{labels.source}, transformed")


def _tensor_of_labels(dataset: TensorDataset) -> NamedColumn | None:
    found = {
        index: column
        for index, tensor in enumerate(dataset.tensors[1:], start=1)
        if (column := named(tensor, len(dataset), f"tensor {index + 1} of TensorDataset")) is not None
    }
    if len(dataset.tensors) == 2:
        return found.get(1)
    of_whole_numbers = [column for column in found.values() if column.values.dtype.kind in "biu"]
    return of_whole_numbers[0] if len(of_whole_numbers) == 1 else None


def _column_of_labels(dataset: Any, named_column: str | None) -> NamedColumn | None:
    names = column_names(dataset)
    features = getattr(dataset, "features", None) or {}
    # By its name: Hugging Face's datasets takes a second to import, and who has such a table has imported it.
    classes = [name for name in names if type(features.get(name)).__name__ == "ClassLabel"]
    for candidates in (classes, [name for name in names if name in LABEL_NAMES]):
        if len(candidates) == 1:
            return table_column(dataset, candidates[0])
        if named_column in candidates:
            break
    return None if named_column is None else table_column(dataset, named_column)
