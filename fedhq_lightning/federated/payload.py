"""What travels: one state as bytes.

A payload is a safetensors file in memory. A tensor with a grid travels as two entries, `NAME|integers` (packed to the
grid's bits) and `NAME|scales`; every other tensor travels as it is. The header's metadata hold format version, kind,
round, client and a checksum over all entries. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from fedhq_lightning.quantize import LayerScheme, dequantize_weight, pack, quantize_weight, unpack
from fedhq_lightning.types import ClientId, StateDict

FORMAT_VERSION = "1"
_INTEGERS, _SCALES = "|integers", "|scales"


class PayloadError(ValueError):
    """A payload that must not be used: damaged, of another round or client, or of another model."""


@dataclass(frozen=True)
class Header:
    """Who sent what, when.

    Attributes:
        kind: "weights" or "delta".
        round: Round number.
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
    metadata = {
        "format_version": FORMAT_VERSION,
        "kind": header.kind,
        "round": str(header.round),
        "client": json.dumps(header.client),
        "checksum": _checksum(entries),
    }
    return safetensors.torch.save(entries, metadata)


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
        entries = safetensors.torch.load(payload)
    except Exception as error:
        raise PayloadError(f"not a safetensors payload: {error}") from error
    if metadata.get("checksum") != _checksum(entries):
        raise PayloadError("checksum does not match: the payload was damaged on the way")
    state: StateDict = {}
    for name, like in template.items():
        state[name] = _restore(name, like, entries, grids.get(name))
    if entries:
        raise PayloadError(f"unknown tensors: {', '.join(sorted(entries))}")
    return state


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


def _restore(name: str, like: Tensor, entries: dict[str, Tensor], grid: LayerScheme | None) -> Tensor:
    if grid is None:
        return _take(entries, name, like.shape, like.dtype)
    rows, columns, count = like.shape[0], like[0].numel(), like.numel()
    packed = _take(entries, name + _INTEGERS, (-(-count * grid.weight_bits // 8),), torch.uint8)
    scales = _take(entries, name + _SCALES, (rows, columns // (grid.group_size or columns)), torch.float32)
    integers = unpack(packed, grid.weight_bits, count).reshape(rows, columns)
    value: Tensor = dequantize_weight(integers, scales, like.shape)
    return value.to(like.dtype)


def _take(entries: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if name not in entries:
        raise PayloadError(f"tensor {name!r} is missing")
    value = entries.pop(name)
    if value.shape != shape or value.dtype != dtype:
        raise PayloadError(f"{name}: {value.dtype} of shape {tuple(value.shape)}, expected {dtype} of {tuple(shape)}")
    return value


def _checksum(entries: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(entries):
        tensor = entries[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether every float value is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in state.values() if tensor.is_floating_point())
