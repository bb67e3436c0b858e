"""What travels: one state as bytes.

A tensor with a grid travels as two entries, `NAME|integers` (packed to the grid's bits) and `NAME|scales`; every other
tensor is an entry as it is. A payload is a safetensors file in memory with one flat tensor per dtype: the entries of
that dtype in the order of their names. The header's metadata hold format version, kind, round, client, the layout
(dtype and shape of every entry, compressed: as header lines they would be 3% of a small model's payload) and a
checksum over all of it. Nothing is pickled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from fedhq_lightning.quantize import LayerScheme, dequantize_weight, pack, packed_bytes, quantize_weight, unpack
from fedhq_lightning.types import ClientId, StateDict

FORMAT_VERSION = "2"
_INTEGERS, _SCALES = "|integers", "|scales"
_LARGEST_LAYOUT_BYTES = 2**26
"""A hostile client must not fill the server's memory with a few compressed bytes."""
_Layout = dict[str, tuple[str, list[int]]]
"""Dtype and shape of every entry."""


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
            entries[name] = tensor.detach().cpu().contiguous().clone()
    bundles = _bundle(entries)
    metadata = {
        "format_version": FORMAT_VERSION,
        "kind": header.kind,
        "round": str(header.round),
        "client": json.dumps(header.client),
        "layout": _write_layout(entries),
    }
    metadata["checksum"] = _checksum(bundles, metadata["layout"])
    return safetensors.torch.save(bundles, metadata)


def decode(
    payload: bytes, template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme], header: Header
) -> StateDict:
    """The state that `encode` was given, rounded to its grids.

    Args:
        payload: Bytes of `encode`.
        template: A state with the expected names, shapes and dtypes.
        grids: As given to `encode`.
        header: What the sender should have said.

    Raises:
        PayloadError: Not readable; another format, checksum, sender or round; names, shapes or dtypes unlike the
            template's.
    """
    metadata = read_metadata(payload)
    expected = {"format_version": FORMAT_VERSION, "kind": header.kind, "round": str(header.round)}
    expected["client"] = json.dumps(header.client)
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise PayloadError(f"{key} is {metadata.get(key)!r}, expected {value!r}")
    try:
        bundles = safetensors.torch.load(payload)
    except Exception as error:
        raise PayloadError(f"not a safetensors payload: {error}") from error
    layout = metadata.get("layout", "")
    if metadata.get("checksum") != _checksum(bundles, layout):
        raise PayloadError("checksum does not match: the payload was damaged on the way")
    _compare(_read_layout(layout), _expected_layout(template, grids))
    entries = _unbundle(bundles, _expected_layout(template, grids))
    return {name: _restore(name, like, entries, grids.get(name)) for name, like in template.items()}


def read_metadata(payload: bytes) -> dict[str, str]:
    """The metadata of a payload: 8 bytes of length, then a JSON header (safetensors' format).

    Raises:
        PayloadError: Not a safetensors header.
    """
    try:
        length = int.from_bytes(payload[:8], "little")
        return dict(json.loads(payload[8 : 8 + length])["__metadata__"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PayloadError("no safetensors header with metadata") from error


def _expected_layout(template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme]) -> _Layout:
    layout: _Layout = {}
    for name, like in template.items():
        if name in grids:
            grid, rows, columns = grids[name], like.shape[0], like[0].numel()
            layout[name + _INTEGERS] = "uint8", [packed_bytes(like.numel(), grid.weight_bits)]
            layout[name + _SCALES] = "float32", [rows, columns // (grid.group_size or columns)]
        else:
            layout[name] = _dtype_name(like.dtype), list(like.shape)
    return layout


def _write_layout(entries: Mapping[str, Tensor]) -> str:
    layout = {name: (_dtype_name(entry.dtype), list(entry.shape)) for name, entry in entries.items()}
    return base64.b85encode(zlib.compress(json.dumps(layout).encode(), level=9)).decode()


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


def _bundle(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bundles: dict[str, list[Tensor]] = {}
    for name in sorted(entries):
        bundles.setdefault(_dtype_name(entries[name].dtype), []).append(entries[name].reshape(-1))
    return {dtype: torch.cat(parts) for dtype, parts in bundles.items()}


def _unbundle(bundles: Mapping[str, Tensor], layout: _Layout) -> dict[str, Tensor]:
    by_dtype: dict[str, list[str]] = {}
    for name in sorted(layout):
        by_dtype.setdefault(layout[name][0], []).append(name)
    counts = {dtype: [math.prod(layout[name][1]) for name in names] for dtype, names in by_dtype.items()}
    found = {name: (_dtype_name(bundle.dtype), list(bundle.shape)) for name, bundle in bundles.items()}
    if found != {dtype: (dtype, [sum(counts[dtype])]) for dtype in by_dtype}:
        raise PayloadError(f"its tensors {found} do not hold what its layout says")
    entries: dict[str, Tensor] = {}
    for dtype, names in by_dtype.items():
        for name, part in zip(names, torch.split(bundles[dtype], counts[dtype]), strict=True):
            # A copy: entries become tensors of a model, which must not share memory.
            entries[name] = part.clone().view(layout[name][1])
    return entries


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _restore(name: str, like: Tensor, entries: Mapping[str, Tensor], grid: LayerScheme | None) -> Tensor:
    if grid is None:
        return entries[name]
    scales = entries[name + _SCALES]
    integers = unpack(entries[name + _INTEGERS], grid.weight_bits, like.numel()).reshape(like.shape[0], -1)
    value: Tensor = dequantize_weight(integers, scales, like.shape)
    return value.to(like.dtype)


def _checksum(bundles: Mapping[str, Tensor], layout: str) -> str:
    digest = hashlib.blake2b(layout.encode(), digest_size=16)
    for name in sorted(bundles):
        bundle = bundles[name]
        digest.update(f"{name} {bundle.dtype} {tuple(bundle.shape)}".encode())
        digest.update(bundle.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether every float value is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in state.values() if tensor.is_floating_point())
