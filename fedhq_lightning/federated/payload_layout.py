"""What lies where in a payload: it follows from the model and the grids, to the byte, before anything has arrived."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedhq_lightning.quantize import LayerScheme, packed_bytes

INTEGERS, SCALES = "|integers", "|scales"
"""Ends of the names of the two entries of a tensor with a grid."""
Entry: TypeAlias = tuple[torch.dtype, tuple[int, ...]]
"""Dtype and shape."""
Layout: TypeAlias = tuple[tuple[str, Entry], ...]
"""Of every entry."""
_DTYPES = {
    "complex64": "C64",
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's names to safetensors'."""


@dataclass(frozen=True)
class Places:
    """What follows from a layout.

    Attributes:
        text: It, compressed.
        bundles: Header lines of the flat tensors, by dtype.
        begins: Where each entry begins in the data, in order.
        num_bytes: Of the data.
    """

    text: str
    bundles: dict[str, dict[str, Any]]
    begins: dict[str, int]
    num_bytes: int


def expected_layout(template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme]) -> Layout:
    """The entries of a state.

    Args:
        template: Names, shapes and dtypes.
        grids: Grid of each tensor that travels packed.
    """
    layout: list[tuple[str, Entry]] = []
    for name, like in template.items():
        if name in grids:
            grid, rows, columns = grids[name], like.shape[0], math.prod(like.shape[1:])
            layout.append((name + INTEGERS, (torch.uint8, (packed_bytes(like.numel(), grid.weight_bits),))))
            layout.append((name + SCALES, (torch.float32, (rows, columns // (grid.group_size or columns)))))
        else:
            layout.append((name, (like.dtype, tuple(like.shape))))
    return tuple(layout)


@lru_cache(maxsize=8)
def places_of(layout: Layout) -> Places:
    """Where its entries lie; the layout of a run's payloads is the same for every client."""
    bundles, begins, end = dict[str, dict[str, Any]](), dict[str, int](), 0
    for name, (dtype, shape) in sorted(layout, key=lambda entry: (-entry[1][0].itemsize, str(entry[1][0]), entry[0])):
        count = math.prod(shape)
        line = {"dtype": _DTYPES[dtype_name(dtype)], "shape": [0], "data_offsets": [end, end]}
        bundle = bundles.setdefault(dtype_name(dtype), line)
        begins[name], end = end, end + count * dtype.itemsize
        bundle["shape"][0] += count
        bundle["data_offsets"][1] = end
    text = base64.b85encode(zlib.compress(_written(layout), level=9)).decode()
    return Places(text, bundles, begins, end)


def why_not_as(layout: Layout, text: str) -> str | None:
    """What a layout that arrived has that this one has not, or the other way round.

    Args:
        layout: That is expected.
        text: That arrived, compressed; what it unpacks to is not read beyond twice the length of what is expected.

    Returns:
        None where both are alike.
    """
    most = 2 * len(_written(layout)) + 1024
    try:
        found = json.loads(zlib.decompressobj().decompress(base64.b85decode(text), most))
        arrived = {str(name): (str(dtype), list(shape)) for name, (dtype, shape) in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError, zlib.error):
        return "no readable layout"
    for name, (dtype, shape) in layout:
        if name not in arrived:
            return f"tensor {name!r} is missing"
        if arrived[name] != (dtype_name(dtype), list(shape)):
            found_dtype, found_shape = arrived[name]
            return f"{name}: {found_dtype} of shape {tuple(found_shape)}, expected {dtype_name(dtype)} of {shape}"
    unknown = sorted(arrived.keys() - dict(layout).keys())
    return f"unknown tensors: {', '.join(unknown)}" if unknown else None


def dtype_name(dtype: torch.dtype) -> str:
    """As torch spells it, without its own name."""
    return str(dtype).removeprefix("torch.")


def _written(layout: Layout) -> bytes:
    return json.dumps({name: (dtype_name(dtype), shape) for name, (dtype, shape) in layout}).encode()
