"""What travels: one state as bytes.

A tensor with a grid travels as two entries, `NAME|integers` (packed to the grid's bits) and `NAME|scales`; every other
tensor is an entry as it is. A payload is a safetensors file in memory with one flat tensor per dtype, widest first: the
entries of that dtype in the order of their names. The header's metadata hold format version, kind, round, client, the
layout (dtype and shape of every entry, compressed: as header lines they would be 3% of a small model's payload) and a
checksum over layout and data, which tells damage, not forgery (for that: `seals.py`). Nothing is pickled.

Whoever receives knows every byte of the header beforehand, but for the checksum. So nothing of what arrives is parsed,
unless to say why it is refused, and then no more of it than a header is long.

Writing copies every value once, into the payload; reading copies none that needs no decoding.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from mmap import mmap
from typing import Any, TypeAlias

import torch
import xxhash
from torch import Tensor

from fedhq_lightning.federated.payload_layout import (
    INTEGERS,
    SCALES,
    Layout,
    Places,
    expected_layout,
    places_of,
    why_not_as,
)
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.quantize.packed_weight import PackedWeight, pack_weight
from fedhq_lightning.types import ClientId, StateDict

FORMAT_VERSION = "3"
PackedState: TypeAlias = dict[str, Tensor | PackedWeight]
"""A state of which the weights with a grid are still packed."""


class PayloadError(ValueError):
    """A payload that must not be used: damaged, of another round or client, or of another model."""


@dataclass(frozen=True)
class Header:
    """Who sent what, when.

    Attributes:
        kind: "weights" or "delta"; "fixed" is what no round changes, "exact" a model that goes down unrounded,
            "statistics" what clients tell of it.
        round: Round number; 0 of what no round changes.
        client: Client id; "server" on the way down.
    """

    kind: str
    round: int
    client: ClientId

    def metadata(self) -> dict[str, str]:
        """As the header of a payload has it."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "round": str(self.round),
            "client": json.dumps(self.client),
        }


def encode(
    state: Mapping[str, Tensor],
    grids: Mapping[str, LayerScheme],
    header: Header,
    bases: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> bytes:
    """One state, or how it differs from another, as bytes.

    Args:
        state: Name to tensor, any device; tensors named in `grids` are float weights.
        grids: Grid of each tensor that is rounded; names not in `state` are ignored.
        header: Goes into the metadata.
        bases: What is taken off tensors before, by name, where the shape is the same; or None.
        generator: Of whether values are rounded up or down; None rounds to the nearest.
    """
    entries: dict[str, Tensor] = {}
    for name, tensor in state.items():
        base = None if bases is None else bases.get(name)
        if base is not None and base.shape != tensor.shape:
            base = None
        if name in grids:
            entries[name + INTEGERS], entries[name + SCALES] = pack_weight(tensor, grids[name], base, generator)
        else:
            value = tensor.detach() if base is None else tensor.detach() - base.to(tensor.device)
            entries[name] = value.cpu().contiguous()
    return _write(entries, header.metadata())


def num_payload_bytes(template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme], header: Header) -> int:
    """Length of what `encode` makes of a state; whoever takes payloads from afar need not read more.

    Args:
        template: A state with the names, shapes and dtypes.
        grids: As for `encode`.
        header: As for `encode`.
    """
    places = places_of(expected_layout(template, grids))
    return len(_head(places, header.metadata(), _checksum("", ()))) + places.num_bytes


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
        PayloadError: Not what `encode` writes of such a state: another length, format, checksum, sender or round;
            names, shapes or dtypes unlike the template's.
    """
    layout = expected_layout(template, grids)
    places, metadata = places_of(layout), header.metadata()
    head = _head(places, metadata, _checksum("", ()))
    if len(payload) == len(head) + places.num_bytes:
        head = _head(places, metadata, _checksum(places.text, [memoryview(payload)[len(head) :]]))
    if len(payload) != len(head) + places.num_bytes or payload[: len(head)] != head:
        raise PayloadError(_why_refused(payload, layout, metadata, len(head)))
    entries = {name: tensor_in(payload, len(head) + places.begins[name], *entry) for name, entry in layout}
    state: PackedState = {}
    for name, like in template.items():
        if name in grids:
            packed, scales = entries[name + INTEGERS], entries[name + SCALES]
            state[name] = PackedWeight(packed, scales, grids[name].weight_bits, like.shape, like.dtype)
        else:
            state[name] = entries[name]
    return state


def read_metadata(payload: bytes) -> dict[str, str]:
    """The metadata of a payload: 8 bytes of length, then a JSON header (safetensors' format).

    Raises:
        PayloadError: Not a safetensors header.
    """
    start = 8 + int.from_bytes(payload[:8], "little")
    try:
        return dict(json.loads(payload[8:start])["__metadata__"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PayloadError("no safetensors header with metadata") from error


def _why_refused(payload: bytes, layout: Layout, expected: Mapping[str, str], num_head_bytes: int) -> str:
    """Why a payload is not the one that is expected; of what arrived, no more is read than a header may be long."""
    places = places_of(layout)
    num_bytes = num_head_bytes + places.num_bytes
    declared = 8 + int.from_bytes(payload[:8], "little")
    if declared > 2 * num_head_bytes + 4096:
        return f"a header of {declared} bytes, expected {num_head_bytes}"
    try:
        metadata = read_metadata(payload[:declared])
    except PayloadError as error:
        return str(error)
    for key, value in expected.items():
        if metadata.get(key) != value:
            return f"{key} is {metadata.get(key)!r}, expected {value!r}"
    text = str(metadata.get("layout", ""))
    if text != places.text and (reason := why_not_as(layout, text)):
        return reason
    if len(payload) != num_bytes:
        return f"{len(payload)} bytes, expected {num_bytes}"
    if metadata.get("checksum") != _checksum(text, [memoryview(payload)[declared:]]):
        return "checksum does not match: the payload was damaged on the way"
    return "its header is not spelled as one of ours"


def _write(entries: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A payload of these entries, contiguous on the CPU, in which nothing is checked but what it says is true."""
    places = places_of(tuple((name, (entry.dtype, tuple(entry.shape))) for name, entry in entries.items()))
    data = [entries[name].reshape(-1).view(torch.uint8).numpy().data for name in places.begins]
    return b"".join([_head(places, metadata, _checksum(places.text, data)), *data])


def _head(places: Places, metadata: Mapping[str, str], checksum: str) -> bytes:
    """What comes before the data."""
    whole: dict[str, Any] = {"__metadata__": {"checksum": checksum, "layout": places.text, **metadata}}
    head = json.dumps(whole | places.bundles, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def tensor_in(data: bytes | mmap, place: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor that begins at a place in bytes; it lies there, and must not be changed."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    _allow_views()
    return torch.frombuffer(data, dtype=dtype, count=count, offset=place).view(shape)


@cache
def _allow_views() -> None:
    """Have torch say here, unheard, what it says once a process: that bytes cannot be changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"0", dtype=torch.uint8)


def _checksum(layout: str, data: Iterable[memoryview]) -> str:
    digest = xxhash.xxh3_128(layout.encode())
    for part in data:
        digest.update(part)
    return digest.hexdigest()
