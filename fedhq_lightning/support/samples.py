"""Some of many, who stand for all."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FEW = 10_000
"""Clients up to which each is looked at."""


def sample_of(everybody: Sequence[T], most: int) -> list[T]:
    """At most so many of them, drawn at random, in order: every time the same of as many.

    Not every hundredth: clients' data may well have a rhythm of their own.

    Args:
        everybody: Only those who are drawn are looked at.
        most: At least 1.
    """
    positions = random.Random(0).sample(range(len(everybody)), min(most, len(everybody)))
    return [everybody[position] for position in sorted(positions)]
