"""Weighted mean of float32 tensors that does not depend on the order of the terms.

Floating-point addition rounds, so a sum changes with the order of its terms and with how they are spread over
processes. Here values are summed as integers, which is exact (`chunk_sum.py`). Rounding happens once all terms are in:
to float64 for the sum and the quotient, then to float32. The mean is then the float32 number next to the exact one, at
most half a unit in the last place and 2**-20 of it away. The sign of a zero is lost: -0.0 comes back as 0.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedhq_lightning.federated.chunk_sum import (
    CHUNK,
    NUM_DIGITS,
    ChunkSum,
    Integers,
    Scratch,
    add_apart,
    mean_of_digits,
)
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import StateDict

MAX_VALUE = 2.0**33
MAX_TOTAL_WEIGHT = 2**29
"""Keeps sums within 62 bits."""
_SMALL = CHUNK // 16
"""Smaller tensors share chunks, of which each costs some ten calls."""
_CHUNKS_TO_SEND = 16
_LIMIT_BITS = int(np.float32(MAX_VALUE).view(np.int32))

_Piece: TypeAlias = tuple[str, int, int]
"""Name of a tensor, and where a part of it begins and ends."""


class ExactMean:
    """Accumulates weighted float32 states exactly, in one int64 an element but for rare values."""

    def __init__(self) -> None:
        self.total_weight = 0
        self._shapes: dict[str, list[int]] = {}
        self._chunks: list[list[_Piece]] = []
        self._sums: list[ChunkSum] = []
        self._scratch = Scratch()

    def add(self, state: Mapping[str, Tensor], weight: int) -> None:
        """Add one state, whole or not at all.

        Args:
            state: Float tensors, finite, magnitude below `MAX_VALUE`; the same keys and shapes at every call.
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
        flat = {name: value.detach().to("cpu", torch.float32).reshape(-1) for name, value in state.items()}
        for number in range(len(self._sums)):
            if not self._add_chunk(number, flat, weight):
                opposite = {name: -value for name, value in flat.items()}
                for added in range(number):  # adding the opposite takes it back, exactly
                    self._add_chunk(added, opposite, weight)
                wrong = next(name for name, value in flat.items() if not bool((value.abs() < MAX_VALUE).all()))
                raise ValueError(f"{wrong}: not finite, or a magnitude of {MAX_VALUE:.0f} and more")
        self.total_weight += weight

    def _add_chunk(self, number: int, flat: Mapping[str, Tensor], weight: int) -> bool:
        """Check a chunk and, while it is in the cache, add it; whether it was in range."""
        values = _joined(flat, self._chunks[number])
        found = self._scratch.magnitudes(values)
        if found is None:
            return True
        if found[0] >= _LIMIT_BITS:
            return False
        self._sums[number].add(values, weight, found, self._scratch)
        return True

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
        for pieces, digits in self._summed(processes):
            values = torch.from_numpy(mean_of_digits(digits, total_weight))
            cut = torch.split(values, [end - begin for _, begin, end in pieces])
            for (name, begin, end), part in zip(pieces, cut, strict=True):
                if name not in mean:  # not before, to take the room that chunks gave back
                    mean[name] = torch.empty(held[0][name])
                mean[name].view(-1)[begin:end] = part
        self.total_weight = 0
        return {name: mean[name] for name in held[0]}, total_weight

    def _summed(self, processes: Processes) -> Iterator[tuple[list[_Piece], Integers]]:
        """Chunk after chunk, the digits of all processes' sums; what was summed is let go."""
        sums, self._sums = self._sums, []
        step = 1 if processes.count == 1 else _CHUNKS_TO_SEND
        groups = [range(first, min(first + step, len(sums))) for first in range(0, len(sums), step)]
        places = processes.gather([_span([sums[number].places() for number in group]) for group in groups])
        apart = processes.gather([[number, list(one.apart.items())] for number, one in enumerate(sums) if one.apart])
        others: dict[int, list[Any]] = {}
        for number, items in (each for part in apart for each in part):
            others.setdefault(number, []).append(items)
        for group, spans in zip(groups, zip(*places, strict=True), strict=True):
            sizes = [sums[number].size for number in group]
            together = np.zeros((NUM_DIGITS, sum(sizes)), np.int64)
            parts = np.split(together, np.cumsum(sizes)[:-1], axis=1)
            for number, digits in zip(group, parts, strict=True):
                sums[number].add_to(digits)
                sums[number] = ChunkSum(0)
            begin, end = _span([range(*span) for span in spans])
            together[begin:end] = processes.sum_integers(torch.from_numpy(together[begin:end])).numpy()
            for number, digits in zip(group, parts, strict=True):
                for items in others.get(number, []):
                    add_apart(dict(items), digits)
                yield self._chunks[number], digits

    def _take_shapes(self, shapes: dict[str, list[int]]) -> None:
        self._shapes, self._chunks = shapes, _cut(shapes)
        self._sums = [ChunkSum(sum(end - begin for _, begin, end in pieces)) for pieces in self._chunks]


def _cut(shapes: Mapping[str, Sequence[int]]) -> list[list[_Piece]]:
    """Which parts of which tensors make a chunk."""
    chunks, small = list[list[_Piece]](), list[_Piece]()
    for name, shape in shapes.items():
        count = math.prod(shape)
        if count > _SMALL:
            chunks += [[(name, begin, min(begin + CHUNK, count))] for begin in range(0, count, CHUNK)]
        elif count:
            if sum(end for _, _, end in small) + count > CHUNK:
                chunks.append(small)
                small = []
            small.append((name, 0, count))
    return [*chunks, small] if small else chunks


def _joined(flat: Mapping[str, Tensor], pieces: Sequence[_Piece]) -> Tensor:
    parts = [flat[name][begin:end] for name, begin, end in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _span(places: Sequence[range]) -> tuple[int, int]:
    held = [each for each in places if each]
    return (min(each.start for each in held), max(each.stop for each in held)) if held else (0, 0)
