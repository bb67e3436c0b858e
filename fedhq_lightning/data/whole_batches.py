"""Batches of a DataLoader whose examples are rows of tensors, taken from the tensors as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """One pass over a loader: the batches that it gives, in its order, with the random numbers that it draws.

    Putting a batch together example by example takes about as long as a small model's step. Where the examples are
    those of torch's TensorDataset, or of Subsets of one, and torch's own function collates them in this process, a
    batch is one indexing operation a tensor, bit for bit the same. Any other loader is simply gone through.

    Args:
        loader: A DataLoader, or anything else that gives batches.
    """
    if not isinstance(loader, DataLoader) or not _is_plain(loader):
        return iter(loader)
    dataset: Any = loader.dataset
    subsets: list[Any] = []  # row numbers in the dataset below, the outermost first
    while _gets_as(dataset, Subset):
        subsets.append(dataset.indices)
        dataset = dataset.dataset
    if not _gets_as(dataset, TensorDataset) or not all(map(_has_plain_rows, dataset.tensors)):
        return iter(loader)
    return _taken(loader, dataset.tensors, subsets)


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether a loader iterates as torch's does, in this process, and collates as torch does by default."""
    return (
        type(loader) is DataLoader
        and loader.batch_sampler is not None
        and loader.collate_fn is default_collate
        and default_collate_fn_map[Tensor] is collate_tensor_fn
        and not loader.num_workers
        and not loader.pin_memory
    )


def _gets_as(dataset: Any, kind: type) -> bool:
    """Whether a dataset gives examples as `kind` does: a subclass may not."""
    return isinstance(dataset, kind) and all(
        getattr(type(dataset), name, None) is getattr(kind, name, None) for name in ("__getitem__", "__getitems__")
    )


def _has_plain_rows(tensor: Tensor) -> bool:
    """Whether stacked rows of a tensor are the same as indexed ones, in memory too."""
    return type(tensor) is Tensor and tensor.is_cpu and tensor.is_contiguous() and not tensor.requires_grad


def _taken(loader: DataLoader[Any], tensors: tuple[Tensor, ...], subsets: list[Any]) -> Iterator[list[Tensor]]:
    subsets = [each.tolist() if isinstance(each, Tensor | np.ndarray) else each for each in subsets]
    index_batches = iter(loader.batch_sampler)  # type: ignore[arg-type]  # _is_plain has seen that it has one
    # torch's iterator draws a seed for its workers, also where there are none.
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    for given in index_batches:
        rows = indices = list(given)
        for subset in subsets:
            rows = [subset[row] for row in rows]
        array = np.array(rows)
        if array.dtype == np.int64 and array.ndim == 1 and len(array):
            index = torch.from_numpy(array)
            yield [_rows(tensor, index) for tensor in tensors]
        else:  # row numbers of another kind, of which the dataset knows what to make
            yield loader.collate_fn([loader.dataset[each] for each in indices])


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    try:
        return tensor.index_select(0, index)  # a quarter of the time of tensor[index]
    except (IndexError, RuntimeError):
        return tensor[index]  # counts negative numbers from the end, and has the clearer error
