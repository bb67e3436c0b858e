"""What a loader gives: batches of any nest of tensors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors of a batch, in its order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for value in batch:
            yield from tensors_of(value)


def examples_of(batch: Any) -> int:
    """Examples in a batch: the length of its first tensor that has one.

    Raises:
        TypeError: No tensor has a length.
    """
    for tensor in tensors_of(batch):
        if tensor.dim():
            return len(tensor)
    raise TypeError(
        f"a batch of {type(batch).__name__} holds no tensor of examples; override batch_size of the contract"
    )


def kinds_of(batch: Any) -> list[tuple[torch.dtype, int]]:
    """Data types and numbers of dimensions of a batch's tensors."""
    return [(tensor.dtype, tensor.dim()) for tensor in tensors_of(batch)]
