"""An update as bytes, its weights as packed as they came: to be kept, sent to other processes, and read in parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from mmap import mmap
from typing import TypeAlias

import torch
from torch import Tensor

from fedhq_lightning.federated.payload import PackedState, tensor_in
from fedhq_lightning.quantize.packed_weight import PackedWeight
from fedhq_lightning.quantize.packing import packed_bytes

UpdateForm: TypeAlias = list[tuple[str, str, list[int], int, list[int]]]
"""Of each tensor: name, dtype, shape, bits of a packed weight or 0, shape of its scales; JSON can hold it."""
_ALIGNMENT = 8


def form_of(update: Mapping[str, Tensor | PackedWeight]) -> UpdateForm:
    """What `update_in` has to know of the bytes; the same for all updates of a round."""
    form: UpdateForm = []
    for name, value in update.items():
        bits, scales = (value.bits, list(value.scales.shape)) if isinstance(value, PackedWeight) else (0, [])
        form.append((name, str(value.dtype).removeprefix("torch."), list(value.shape), bits, scales))
    return form


def bytes_of(update: Mapping[str, Tensor | PackedWeight]) -> bytes:
    """All tensors of an update, one after the other."""
    parts = list[bytes]()
    for value in update.values():
        for each in (value.packed, value.scales) if isinstance(value, PackedWeight) else (value,):
            data = each.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            parts += [data, bytes(-len(data) % _ALIGNMENT)]
    return b"".join(parts)


def update_in(data: bytes | mmap, form: UpdateForm) -> PackedState:
    """The update again, as it lies in the bytes, which must not be changed in place."""
    place = 0

    def following(dtype: torch.dtype, shape: list[int]) -> Tensor:
        nonlocal place
        tensor = tensor_in(data, place, dtype, tuple(shape))
        place += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return tensor

    update: PackedState = {}
    for name, dtype_name, shape, bits, scales_shape in form:
        dtype: torch.dtype = getattr(torch, dtype_name)
        if bits:
            packed = following(torch.uint8, [packed_bytes(math.prod(shape), bits)])
            update[name] = PackedWeight(packed, following(torch.float32, scales_shape), bits, tuple(shape), dtype)
        else:
            update[name] = following(dtype, shape)
    return update
