"""What travels: one state as bytes.

A tensor with a grid travels as two entries, `NAME|integers` (packed to the grid's bits) and `NAME|scales`; every other
tensor is an entry as it is. A payload is a safetensors file in memory with one flat tensor per dtype, widest first: the
entries of that dtype in the order of their names. The header's metadata hold format version, kind, round, client, the
layout (dtype and shape of every entry, compressed: as header lines they would be 3% of a small model's payload) and a
checksum over all of it, which tells damage, not forgery. Nothing is pickled.

Writing copies every value once, into the payload; reading copies none that needs no decoding.
"""

from __future__ import annotations

import base64
import json
import math
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeAlias

import torch
import xxhash
from torch import Tensor

from fedhq_lightning.quantize import LayerScheme, dequantize_weight, pack, packed_bytes, quantize_weight, unpack
from fedhq_lightning.types import ClientId, StateDict

FORMAT_VERSION = "3"
_INTEGERS, _SCALES = "|integers", "|scales"
_LARGEST_LAYOUT_BYTES = 2**26
"""A hostile client must not fill the server's memory with a few compressed bytes."""
_Layout: TypeAlias = dict[str, tuple[str, list[int]]]
"""Dtype and shape of every entry."""
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


class PayloadError(ValueError):
    """A payload that must not be used: damaged, of another round or client, or of another model."""


@dataclass(frozen=True)
class Header:
    """Who sent what, when.

    Attributes:
        kind: "weights" or "delta"; "fixed" is what no round changes.
        round: Round number; 0 of what no round changes.
        client: Client id; "server" on the way down.
    """

    kind: str
    round: int
    client: ClientId


def encode(state: Mapping[str, Tensor], grids: Mapping[str, LayerScheme], header: Header) -> bytes:
    """One state as bytes.

    Args:
        state: Name to tensor, any device; tensors named in `grids` are float weights.
        grids: Grid of each tensor that is rounded; names not in `state` are ignored.
        header: Goes into the metadata.
    """
    entries: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in grids:
            integers, scales = quantize_weight(tensor.detach().cpu().float(), grids[name])
            entries[name + _INTEGERS] = pack(integers, grids[name].weight_bits)
            entries[name + _SCALES] = scales.contiguous()
        else:
            entries[name] = tensor.detach().cpu().contiguous()
    return _write(
        entries,
        format_version=FORMAT_VERSION,
        kind=header.kind,
        round=str(header.round),
        client=json.dumps(header.client),
    )


def decode(
    payload: bytes, template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme], header: Header
) -> StateDict:
    """The state that `encode` was given, rounded to its grids.

    Args:
        payload: Bytes of `encode`.
        template: A state with the expected names, shapes and dtypes.
        grids: As given to `encode`.
        header: What the sender should have said.

    Returns:
        New tensors where there is a grid; the others lie in the payload, and must not be changed in place.

    Raises:
        PayloadError: Not readable; another format, checksum, sender or round; names, shapes or dtypes unlike the
            template's.
    """
    head, data = _split(payload)
    metadata = _metadata(head)
    expected = {"format_version": FORMAT_VERSION, "kind": header.kind, "round": str(header.round)}
    expected["client"] = json.dumps(header.client)
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise PayloadError(f"{key} is {metadata.get(key)!r}, expected {value!r}")
    text = metadata.get("layout", "")
    if metadata.get("checksum") != _checksum(text, [data]):
        raise PayloadError("checksum does not match: the payload was damaged on the way")
    layout = _expected_layout(template, grids)
    if text != _write_layout(layout):
        _compare(_read_layout(text), layout)
    bundles, places, num_bytes = _bundles(layout)
    if {name: value for name, value in head.items() if name != "__metadata__"} != bundles or len(data) != num_bytes:
        raise PayloadError("its tensors do not hold what its layout says")
    first = len(payload) - len(data)
    entries = {name: _view(payload, first + place, *layout[name]) for name, place in places.items()}
    return {name: _restore(name, like, entries, grids.get(name)) for name, like in template.items()}


def read_metadata(payload: bytes) -> dict[str, str]:
    """The metadata of a payload: 8 bytes of length, then a JSON header (safetensors' format).

    Raises:
        PayloadError: Not a safetensors header.
    """
    return _metadata(_split(payload)[0])


def _split(payload: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header, and all that follows it."""
    try:
        start = 8 + int.from_bytes(payload[:8], "little")
        return dict(json.loads(payload[8:start])), memoryview(payload)[start:]
    except (ValueError, TypeError, RecursionError) as error:
        raise PayloadError("no safetensors header with metadata") from error


def _metadata(head: Mapping[str, Any]) -> dict[str, str]:
    try:
        return dict(head["__metadata__"])
    except (ValueError, TypeError, KeyError) as error:
        raise PayloadError("no safetensors header with metadata") from error


def _write(entries: Mapping[str, Tensor], **metadata: str) -> bytes:
    """A payload of these entries, contiguous on the CPU, in which nothing is checked but what it says is true."""
    layout = {name: (_dtype_name(entry.dtype), list(entry.shape)) for name, entry in entries.items()}
    bundles, places, _ = _bundles(layout)
    data = [entries[name].reshape(-1).view(torch.uint8).numpy().data for name in places]
    metadata = {"layout": _write_layout(layout)} | metadata
    metadata = {"checksum": _checksum(metadata["layout"], data)} | metadata
    head = json.dumps({"__metadata__": metadata, **bundles}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *data])


def _expected_layout(template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme]) -> _Layout:
    layout: _Layout = {}
    for name, like in template.items():
        if name in grids:
            grid, rows, columns = grids[name], like.shape[0], math.prod(like.shape[1:])
            layout[name + _INTEGERS] = "uint8", [packed_bytes(like.numel(), grid.weight_bits)]
            layout[name + _SCALES] = "float32", [rows, columns // (grid.group_size or columns)]
        else:
            layout[name] = _dtype_name(like.dtype), list(like.shape)
    return layout


def _write_layout(layout: _Layout) -> str:
    return _compressed(json.dumps(layout))


@lru_cache(maxsize=8)
def _compressed(text: str) -> str:
    """The layout of a run's payloads is the same for every client."""
    return base64.b85encode(zlib.compress(text.encode(), level=9)).decode()


def _read_layout(text: str) -> _Layout:
    try:
        written = zlib.decompressobj().decompress(base64.b85decode(text), _LARGEST_LAYOUT_BYTES)
        return {str(name): (str(dtype), list(shape)) for name, (dtype, shape) in json.loads(written).items()}
    except (ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise PayloadError("no readable layout") from error


def _compare(layout: _Layout, expected: _Layout) -> None:
    for name, (dtype, shape) in expected.items():
        if name not in layout:
            raise PayloadError(f"tensor {name!r} is missing")
        if layout[name] != (dtype, shape):
            found_dtype, found_shape = layout[name]
            raise PayloadError(
                f"{name}: {found_dtype} of shape {tuple(found_shape)}, expected {dtype} of {tuple(shape)}"
            )
    if unknown := sorted(layout.keys() - expected.keys()):
        raise PayloadError(f"unknown tensors: {', '.join(unknown)}")


def _bundles(layout: _Layout) -> tuple[dict[str, dict[str, Any]], dict[str, int], int]:
    """Header lines of the flat tensors, by dtype; where each entry begins in the data, in order; bytes of the data."""
    widths = {name: torch.empty(0, dtype=getattr(torch, dtype)).itemsize for name, (dtype, _) in layout.items()}
    bundles, places, end = dict[str, dict[str, Any]](), dict[str, int](), 0
    for name in sorted(layout, key=lambda name: (-widths[name], layout[name][0], name)):
        dtype, shape = layout[name]
        count = math.prod(shape)
        bundle = bundles.setdefault(dtype, {"dtype": _DTYPES[dtype], "shape": [0], "data_offsets": [end, end]})
        places[name], end = end, end + count * widths[name]
        bundle["shape"][0] += count
        bundle["data_offsets"][1] = end
    return bundles, places, end


def _view(payload: bytes, place: int, dtype: str, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    _allow_views()
    return torch.frombuffer(payload, dtype=getattr(torch, dtype), count=count, offset=place).view(shape)


@cache
def _allow_views() -> None:
    """Have torch say here, unheard, what it says once a process: that bytes cannot be changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"0", dtype=torch.uint8)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _restore(name: str, like: Tensor, entries: Mapping[str, Tensor], grid: LayerScheme | None) -> Tensor:
    if grid is None:
        return entries[name]
    scales = entries[name + _SCALES]
    integers = unpack(entries[name + _INTEGERS], grid.weight_bits, like.numel()).reshape(like.shape[0], -1)
    value: Tensor = dequantize_weight(integers, scales, like.shape)
    return value.to(like.dtype)


def _checksum(layout: str, data: Iterable[memoryview]) -> str:
    digest = xxhash.xxh3_128(layout.encode())
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether every float value is finite."""
    # A sum is finite only where all terms are, and much faster; where it is not, it may itself have overflown.
    return all(
        bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
        for tensor in state.values()
        if tensor.is_floating_point()
    )
