"""A state cut into chunks of values, so that large tensors are worked on in parts and small ones together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from fedhq_lightning.federated.chunk_loops import CHUNK

SMALL = CHUNK // 16
"""Smaller tensors share chunks, of which each costs some ten calls."""

Piece: TypeAlias = tuple[str, int, int]
"""Name of a tensor, and where a part of it begins and ends."""


def cut(shapes: Mapping[str, Sequence[int]], most: int = CHUNK) -> list[list[Piece]]:
    """Which parts of which tensors make a chunk; those without elements are in none.

    Args:
        shapes: By name.
        most: Values in a chunk, a multiple of 8, which is where packed weights can be cut.
    """
    chunks, small, num_small = list[list[Piece]](), list[Piece](), 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        if count > min(SMALL, most):
            chunks += [[(name, begin, min(begin + most, count))] for begin in range(0, count, most)]
        elif count:
            if num_small + count > most:
                chunks.append(small)
                small, num_small = [], 0
            small.append((name, 0, count))
            num_small += count
    return [*chunks, small] if small else chunks
