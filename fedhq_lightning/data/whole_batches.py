"""Batches of a DataLoader whose examples are rows of tensors, taken from the tensors as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

from fedhq_lightning.data.images import ImageTensors, collate_images
from fedhq_lightning.support.tensors import rows_of


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """One pass over a loader: the batches that it gives, in its order, with the random numbers that it draws.

    Putting a batch together example by example takes about as long as a small model's step. Where the examples are
    those of torch's TensorDataset, or of Subsets of one, and torch's own function collates them in this process, a
    batch is one indexing operation a tensor, bit for bit the same; so it is with our images. Any other loader is simply
    gone through.

    Args:
        loader: A DataLoader, or anything else that gives batches.
    """
    if type(loader) is not DataLoader or loader.batch_sampler is None or loader.num_workers or loader.pin_memory:
        return iter(loader)
    dataset: Any = loader.dataset
    subsets: list[Any] = []  # row numbers in the dataset below, the outermost first
    while _gets_as(dataset, Subset):
        subsets.append(dataset.indices)
        dataset = dataset.dataset
    take = _whole_batch(dataset, loader.collate_fn)
    return iter(loader) if take is None else _taken(loader, take, subsets)


def _whole_batch(dataset: Any, collate: Callable[[Any], Any]) -> Callable[[Tensor], list[Tensor]] | None:
    """What makes a batch of row numbers, (batch,) int64, as the loader would; None where only it can."""
    if _gets_as(dataset, ImageTensors) and collate is collate_images:
        return lambda index: list(dataset.take(index))
    by_torch = collate is default_collate and default_collate_fn_map[Tensor] is collate_tensor_fn
    if by_torch and _gets_as(dataset, TensorDataset) and all(map(_has_plain_rows, dataset.tensors)):
        return lambda index: [rows_of(tensor, index) for tensor in dataset.tensors]
    return None


def _gets_as(dataset: Any, kind: type) -> bool:
    """Whether a dataset gives examples as `kind` does: a subclass may not."""
    return isinstance(dataset, kind) and all(
        getattr(type(dataset), name, None) is getattr(kind, name, None) for name in ("__getitem__", "__getitems__")
    )


def _has_plain_rows(tensor: Tensor) -> bool:
    """Whether stacked rows of a tensor are the same as indexed ones, in memory too."""
    return type(tensor) is Tensor and tensor.is_cpu and tensor.is_contiguous() and not tensor.requires_grad


def _taken(
    loader: DataLoader[Any], take: Callable[[Tensor], list[Tensor]], subsets: list[Any]
) -> Iterator[list[Tensor]]:
    subsets = [each.tolist() if isinstance(each, Tensor | np.ndarray) else each for each in subsets]
    index_batches = iter(loader.batch_sampler)  # type: ignore[arg-type]  # batches_of has seen that it has one
    # torch's iterator draws a seed for its workers, also where there are none.
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    for given in index_batches:
        rows = indices = list(given)
        for subset in subsets:
            rows = [subset[row] for row in rows]
        array = np.array(rows)
        if array.dtype == np.int64 and array.ndim == 1 and len(array):
            yield take(torch.from_numpy(array))
        else:  # row numbers of another kind, of which the dataset knows what to make
            yield loader.collate_fn([loader.dataset[each] for each in indices])
