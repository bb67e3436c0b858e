"""Weighted mean of float32 tensors that does not depend on the order of the terms.

Floating-point addition rounds, so a sum changes with the order of its terms and with how they are spread over
processes. Here values are summed as integers, which is exact (`chunk_sum.py`). Rounding happens once all terms are in:
to float64 for the sum and the quotient, then to float32. The mean is then the float32 number next to the exact one, at
most half a unit in the last place and 2**-20 of it away. The sign of a zero is lost: -0.0 comes back as 0.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedhq_lightning.federated.chunk_loops import Scratch
from fedhq_lightning.federated.chunk_pieces import SMALL, Piece, cut
from fedhq_lightning.federated.chunk_sum import (
    MAX_VALUE,
    NUM_DIGITS,
    ChunkSum,
    Integers,
    add_apart,
    common_exponent,
    mean_of_digits,
)
from fedhq_lightning.quantize.native.lanes import native
from fedhq_lightning.quantize.packed_weight import PackedWeight
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import StateDict

MAX_TOTAL_WEIGHT = 2**29
"""Keeps sums within 62 bits."""
_CHUNKS_TO_SEND = 16


class ExactMean:
    """Accumulates weighted float32 states exactly, in one int64 an element but for rare values."""

    def __init__(self) -> None:
        self.total_weight = 0
        self._shapes: dict[str, list[int]] = {}
        self._chunks: list[list[Piece]] = []
        self._sums: list[ChunkSum] = []
        self._scratch = Scratch()

    def add(self, state: Mapping[str, Tensor | PackedWeight], weight: int) -> None:
        """Add one state, whole or not at all.

        Args:
            state: Float tensors, finite, magnitude below `MAX_VALUE`; the same keys and shapes at every call. A packed
                weight is decoded on its way into the sum.
            weight: Number of examples, >= 1.

        Raises:
            ValueError: A value out of range, other keys or shapes, or the total weight passes `MAX_TOTAL_WEIGHT`.
        """
        if weight < 1 or self.total_weight + weight > MAX_TOTAL_WEIGHT:
            raise ValueError(f"weight {weight}: must be >= 1 and the total at most {MAX_TOTAL_WEIGHT}")
        shapes = {name: list(value.shape) for name, value in state.items()}
        if not self._sums:
            self._take_shapes(shapes)
        if shapes != self._shapes:
            raise ValueError("names or shapes unlike those of the first update")
        flat = {name: _flat(value) for name, value in state.items()}
        for number, (one, pieces) in enumerate(zip(self._sums, self._chunks, strict=True)):
            if not one.add(self._joined(flat, pieces), weight, self._scratch):
                for added in range(number):  # adding the opposite takes it back, exactly
                    self._sums[added].add(-self._joined(flat, self._chunks[added]), weight, self._scratch)
                wrong = next(name for name, value in state.items() if not _in_range(value))
                raise ValueError(f"{wrong}: not finite, or a magnitude of {MAX_VALUE:.0f} and more")
        self.total_weight += weight

    def mean(self, processes: Processes) -> tuple[StateDict, int]:
        """Mean of what all processes added, in float32, and the sum of its weights; nothing and 0 where nobody did.

        The same on every process. The accumulator is empty then: its room is given back while the mean is made.

        Raises:
            ValueError: Processes that each kept to `MAX_TOTAL_WEIGHT` passed it together, or added unlike states.
        """
        parts = processes.gather([self.total_weight, self._shapes])
        total_weight, held = sum(part[0] for part in parts), [part[1] for part in parts if part[0]]
        if not held:
            return {}, 0
        if total_weight > MAX_TOTAL_WEIGHT:
            raise ValueError(f"total weight {total_weight}: at most {MAX_TOTAL_WEIGHT}")
        if any(shapes != held[0] for shapes in held):
            raise ValueError("processes added updates of unlike names or shapes")
        if not self._sums:
            self._take_shapes(held[0])
        mean = {name: torch.empty(shape) for name, shape in held[0].items() if not math.prod(shape)}
        for pieces, values in self._means(processes, total_weight):
            cut = torch.split(values, [end - begin for _, begin, end in pieces])
            for (name, begin, end), part in zip(pieces, cut, strict=True):
                if name not in mean:  # not before, to take the room that chunks gave back
                    mean[name] = torch.empty(held[0][name])
                mean[name].view(-1)[begin:end] = part
        self.total_weight = 0
        return {name: mean[name] for name in held[0]}, total_weight

    def _means(self, processes: Processes, total_weight: int) -> Iterator[tuple[list[Piece], Tensor]]:
        """Chunk after chunk, the mean of all processes' sums; what was summed is let go."""
        sums, self._sums = self._sums, []
        if processes.count == 1:
            for number, pieces in enumerate(self._chunks):
                values = sums[number].mean(total_weight, self._scratch)
                sums[number] = ChunkSum(0)
                yield pieces, values
            return
        spans = zip(*processes.gather([one.span() for one in sums]), strict=True)
        found = {number: common_exponent(each) for number, each in enumerate(spans)}
        exponents = {number: each for number, each in found.items() if each is not None}
        apart: list[dict[int, int]] = [{} for _ in sums]
        few = [[number, list(one.apart.items())] for number, one in enumerate(sums) if one.apart]
        for part in processes.gather(few):
            for number, items in part:
                for place, total in items:
                    apart[number][place] = apart[number].get(place, 0) + total
        for group in _batches(list(exponents)):
            units = np.empty(sum(sums[number].size for number in group), np.int64)
            parts = _split(units, [sums[number].size for number in group])
            for number, own in zip(group, parts, strict=True):
                sums[number].write_units(exponents[number], own)
                sums[number] = ChunkSum(0)
            units[:] = processes.sum_integers(torch.from_numpy(units)).numpy()
            for number, all_units in zip(group, parts, strict=True):
                whole = ChunkSum.of_units(all_units, exponents[number], apart[number])
                yield self._chunks[number], whole.mean(total_weight, self._scratch)
        for group in _batches([number for number in found if number not in exponents]):
            places = processes.gather(_span([sums[number].places() for number in group]))
            together = np.zeros((NUM_DIGITS, sum(sums[number].size for number in group)), np.int64)
            parts = _split(together, [sums[number].size for number in group])
            for number, digits in zip(group, parts, strict=True):
                sums[number].add_to(digits)
                sums[number] = ChunkSum(0)
            begin, end = _span([range(*span) for span in places])
            together[begin:end] = processes.sum_integers(torch.from_numpy(together[begin:end])).numpy()
            for number, digits in zip(group, parts, strict=True):
                add_apart(apart[number], digits)
                yield self._chunks[number], torch.from_numpy(mean_of_digits(digits, total_weight))

    def _joined(self, flat: Mapping[str, Tensor | PackedWeight], pieces: Sequence[Piece]) -> Tensor:
        """The values of a chunk, one after the other, until the next call."""
        if len(pieces) > 1:
            return torch.cat([flat[name] for name, _, _ in pieces])  # type: ignore[misc]  # small ones are decoded
        [(name, begin, end)] = pieces
        whole = flat[name]
        if not isinstance(whole, PackedWeight):
            return whole[begin:end]
        values = self._scratch.values[: end - begin]
        whole.read(begin, values)
        return values

    def _take_shapes(self, shapes: dict[str, list[int]]) -> None:
        self._shapes, self._chunks = shapes, cut(shapes)
        self._sums = [ChunkSum(sum(end - begin for _, begin, end in pieces)) for pieces in self._chunks]


def _batches(numbers: list[int]) -> Iterator[list[int]]:
    for first in range(0, len(numbers), _CHUNKS_TO_SEND):
        yield numbers[first : first + _CHUNKS_TO_SEND]


def _split(together: Integers, sizes: list[int]) -> list[Integers]:
    """Views of an array (..., sum of sizes)."""
    return np.split(together, np.cumsum(sizes)[:-1], axis=-1)


def _flat(value: Tensor | PackedWeight) -> Tensor | PackedWeight:
    """In float32 on the CPU; large ones still packed where they can be decoded a piece at a time."""
    if isinstance(value, PackedWeight):
        if value.dtype is torch.float32 and math.prod(value.shape) > SMALL and native(value.scales) is not None:
            return value
        value = value.decoded()
    return value.detach().to("cpu", torch.float32).reshape(-1)


def _in_range(value: Tensor | PackedWeight) -> bool:
    values = value.decoded() if isinstance(value, PackedWeight) else value.detach().to("cpu", torch.float32)
    return bool((values.abs() < MAX_VALUE).all())


def _span(places: Sequence[range]) -> tuple[int, int]:
    held = [each for each in places if each]
    return (min(each.start for each in held), max(each.stop for each in held)) if held else (0, 0)
