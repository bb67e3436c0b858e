"""Columns of a dataset that we know nothing about: one value per example, and where they come from."""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

Column = NDArray[Any]
"""(num_examples,) numbers, booleans or strings."""

COLUMN_KINDS = "biufU"


@dataclass(frozen=True)
class NamedColumn:
    """One value per example.

    Attributes:
        values: In the dataset's order.
        source: What they are, for messages: "column 'label' of Dataset".
    """

    values: Column
    source: str


def find_column(dataset: Any, name: str) -> NamedColumn | None:
    """What a dataset itself calls `name`: a column, as Hugging Face's have, or an attribute with a value per example.

    Looked for below torch's Subset and ConcatDataset too.

    Args:
        dataset: A map-style dataset.
        name: Column name.
    """
    return through_wrappers(dataset, lambda inner: table_column(inner, name) or attribute_column(inner, name))


def column_names(dataset: Any) -> list[str]:
    """Names of a dataset's own columns, as Hugging Face's have; none where it has no named columns."""
    names = getattr(dataset, "column_names", None)
    return list(names) if isinstance(names, list | tuple) else []


def table_column(dataset: Any, name: str) -> NamedColumn | None:
    """The named column of a dataset that has named columns, as stored: whatever format or transform is set on it."""
    if name not in column_names(dataset):
        return None
    stored = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    return named(stored[name], len(dataset), f"column {name!r} of {type(dataset).__name__}")


def attribute_column(dataset: Any, name: str) -> NamedColumn | None:
    """The named attribute of a dataset, where it holds a value per example."""
    return named(getattr(dataset, name, None), len(dataset), f"{type(dataset).__name__}.{name}")


def named(values: Any, num_examples: int, source: str) -> NamedColumn | None:
    """Values as a column, or None where they are not one number or text per example."""
    column = as_column(values, num_examples)
    return None if column is None else NamedColumn(column, source)


def as_column(values: Any, num_examples: int) -> Column | None:
    """Values as an array, (num_examples,), or None where they are not one number or text per example.

    Args:
        values: Anything in the examples' order; (num_examples, 1) counts as one value per example.
        num_examples: How many there must be.
    """
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping | Set):
        return None
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has none
    try:
        column = np.asarray(values if hasattr(values, "__array__") else list(values))
    except (TypeError, ValueError):
        # Ragged or otherwise no column at all, such as the boxes of a detection dataset.
        return None
    if column.shape == (num_examples, 1):
        column = column[:, 0]
    if column.dtype.kind == "O" and any(all(isinstance(value, kind) for value in column.flat) for kind in (str, Real)):
        column = np.asarray(column.tolist())
    return column if column.shape == (num_examples,) and column.dtype.kind in COLUMN_KINDS else None


def through_wrappers(dataset: Any, read: Callable[[Any], NamedColumn | None]) -> NamedColumn | None:
    """What `read` finds on a dataset, or below torch's Subset and ConcatDataset, in the order of the outermost.

    Args:
        dataset: A map-style dataset.
        read: From a dataset to a column of its own.
    """
    found = read(dataset)
    if found is not None:
        return found
    if isinstance(dataset, Subset):
        inner = through_wrappers(dataset.dataset, read)
        rows = np.asarray(dataset.indices, dtype=np.int64)
        return None if inner is None else NamedColumn(inner.values[rows], inner.source)
    if isinstance(dataset, ConcatDataset):
        parts = [through_wrappers(part, read) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        # Numbers of one part are not the texts of another.
        alike = len({part.values.dtype.kind == "U" for part in known}) == 1
        if alike and len(known) == len(parts):
            return NamedColumn(np.concatenate([part.values for part in known]), known[0].source)
    return None


def innermost(dataset: Any) -> Any:
    """The dataset below Subset, for messages."""
    return innermost(dataset.dataset) if isinstance(dataset, Subset) else dataset
