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

from fedhq_lightning.quantize import LayerScheme, packed_bytes
from fedhq_lightning.quantize.packed_weight import PackedWeight, pack_weight
from fedhq_lightning.types import ClientId, StateDict

FORMAT_VERSION = "3"
_INTEGERS, _SCALES = "|integers", "|scales"
_LARGEST_LAYOUT_BYTES = 2**26
"""A hostile client must not fill the server's memory with a few compressed bytes."""
PackedState: TypeAlias = dict[str, Tensor | PackedWeight]
"""A state of which the weights with a grid are still packed."""
_Entry: TypeAlias = tuple[torch.dtype, tuple[int, ...]]
"""Dtype and shape."""
_Layout: TypeAlias = tuple[tuple[str, _Entry], ...]
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


def encode(
    state: Mapping[str, Tensor],
    grids: Mapping[str, LayerScheme],
    header: Header,
    bases: Mapping[str, Tensor] | None = None,
) -> bytes:
    """One state, or how it differs from another, as bytes.

    Args:
        state: Name to tensor, any device; tensors named in `grids` are float weights.
        grids: Grid of each tensor that is rounded; names not in `state` are ignored.
        header: Goes into the metadata.
        bases: What is taken off each tensor before, where its shape is the same; or None.
    """
    entries: dict[str, Tensor] = {}
    for name, tensor in state.items():
        base = None if bases is None or bases[name].shape != tensor.shape else bases[name]
        if name in grids:
            entries[name + _INTEGERS], entries[name + _SCALES] = pack_weight(tensor, grids[name], base)
        else:
            value = tensor.detach() if base is None else tensor.detach() - base.to(tensor.device)
            entries[name] = value.cpu().contiguous()
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
        PayloadError: As `open_payload`.
    """
    return decoded(open_payload(payload, template, grids, header))


def decoded(state: Mapping[str, Tensor | PackedWeight]) -> StateDict:
    """Tensors where there were packed weights."""
    return {name: value.decoded() if isinstance(value, PackedWeight) else value for name, value in state.items()}


def open_payload(
    payload: bytes, template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme], header: Header
) -> PackedState:
    """What `encode` was given, as it lies in the payload, which must not be changed in place.

    Args:
        payload: Bytes of `encode`.
        template: A state with the expected names, shapes and dtypes.
        grids: As given to `encode`.
        header: What the sender should have said.

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
    plan = _plan(layout)
    if text != plan.text:
        _compare(_read_layout(text), dict(layout))
    del head["__metadata__"]
    if head != plan.bundles or len(data) != plan.num_bytes:
        raise PayloadError("its tensors do not hold what its layout says")
    first = len(payload) - len(data)
    entries = {name: _view(payload, first + plan.places[name], *entry) for name, entry in layout}
    state: PackedState = {}
    for name, like in template.items():
        if name in grids:
            packed, scales = entries[name + _INTEGERS], entries[name + _SCALES]
            state[name] = PackedWeight(packed, scales, grids[name].weight_bits, like.shape, like.dtype)
        else:
            state[name] = entries[name]
    return state


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
    plan = _plan(tuple((name, (entry.dtype, tuple(entry.shape))) for name, entry in entries.items()))
    data = [entries[name].reshape(-1).view(torch.uint8).numpy().data for name in plan.places]
    metadata = {"layout": plan.text} | metadata
    metadata = {"checksum": _checksum(metadata["layout"], data)} | metadata
    head = json.dumps({"__metadata__": metadata, **plan.bundles}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *data])


def _expected_layout(template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme]) -> _Layout:
    layout: list[tuple[str, _Entry]] = []
    for name, like in template.items():
        if name in grids:
            grid, rows, columns = grids[name], like.shape[0], math.prod(like.shape[1:])
            layout.append((name + _INTEGERS, (torch.uint8, (packed_bytes(like.numel(), grid.weight_bits),))))
            layout.append((name + _SCALES, (torch.float32, (rows, columns // (grid.group_size or columns)))))
        else:
            layout.append((name, (like.dtype, tuple(like.shape))))
    return tuple(layout)


@dataclass(frozen=True)
class _Plan:
    """What follows from a layout.

    Attributes:
        text: It, compressed.
        bundles: Header lines of the flat tensors, by dtype.
        places: Where each entry begins in the data, in order.
        num_bytes: Of the data.
    """

    text: str
    bundles: dict[str, dict[str, Any]]
    places: dict[str, int]
    num_bytes: int


@lru_cache(maxsize=8)
def _plan(layout: _Layout) -> _Plan:
    """The layout of a run's payloads is the same for every client."""
    bundles, places, end = dict[str, dict[str, Any]](), dict[str, int](), 0
    for name, (dtype, shape) in sorted(layout, key=lambda entry: (-entry[1][0].itemsize, str(entry[1][0]), entry[0])):
        count = math.prod(shape)
        line = {"dtype": _DTYPES[_dtype_name(dtype)], "shape": [0], "data_offsets": [end, end]}
        bundle = bundles.setdefault(_dtype_name(dtype), line)
        places[name], end = end, end + count * dtype.itemsize
        bundle["shape"][0] += count
        bundle["data_offsets"][1] = end
    written = json.dumps({name: (_dtype_name(dtype), shape) for name, (dtype, shape) in layout})
    text = base64.b85encode(zlib.compress(written.encode(), level=9)).decode()
    return _Plan(text, bundles, places, end)


def _read_layout(text: str) -> dict[str, tuple[str, list[int]]]:
    try:
        written = zlib.decompressobj().decompress(base64.b85decode(text), _LARGEST_LAYOUT_BYTES)
        return {str(name): (str(dtype), list(shape)) for name, (dtype, shape) in json.loads(written).items()}
    except (ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise PayloadError("no readable layout") from error


def _compare(layout: Mapping[str, tuple[str, list[int]]], expected: Mapping[str, _Entry]) -> None:
    for name, (dtype, shape) in expected.items():
        if name not in layout:
            raise PayloadError(f"tensor {name!r} is missing")
        if layout[name] != (_dtype_name(dtype), list(shape)):
            found_dtype, found_shape = layout[name]
            raise PayloadError(
                f"{name}: {found_dtype} of shape {tuple(found_shape)}, expected {_dtype_name(dtype)} of {shape}"
            )
    if unknown := sorted(layout.keys() - expected.keys()):
        raise PayloadError(f"unknown tensors: {', '.join(unknown)}")


def _view(payload: bytes, place: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    _allow_views()
    return torch.frombuffer(payload, dtype=dtype, count=count, offset=place).view(shape)


@cache
def _allow_views() -> None:
    """Have torch say here, unheard, what it says once a process: that bytes cannot be changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"0", dtype=torch.uint8)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _checksum(layout: str, data: Iterable[memoryview]) -> str:
    digest = xxhash.xxh3_128(layout.encode())
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def is_finite(state: Mapping[str, Tensor | PackedWeight]) -> bool:
    """Whether every float value is finite."""
    return all(
        value.is_finite() if isinstance(value, PackedWeight) else _has_finite_values(value) for value in state.values()
    )


def _has_finite_values(tensor: Tensor) -> bool:
    # A sum is finite only where all terms are, and much faster; where it is not, it may itself have overflown.
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
