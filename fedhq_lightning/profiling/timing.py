"""Wall times of several pieces of work on this host, in blocks that take turns."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch

Key = TypeVar("Key")
Work = Callable[[int], float]
"""Does its work so many times, and returns wall seconds for one time."""

_WARM_UPS = 2  # a kernel may be compiled once more when it is called with what its first call has left
_MOST_REPEATS = 10_000


@dataclass(frozen=True)
class Timing:
    """What one piece of work takes here.

    Attributes:
        blocks: Wall seconds for one time, one figure a round.
        warm_up_seconds: Wall, of its first calls, with all compilation; not in the blocks.
    """

    blocks: tuple[float, ...]
    warm_up_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """The median of the blocks."""
        return median(self.blocks)

    def speed_over(self, other: "Timing") -> float:
        """How many times as fast this is as another that was measured in the same rounds: median over the rounds.

        Raises:
            ValueError: Rounds that do not pair.
        """
        return median(theirs / own for own, theirs in zip(self.blocks, other.blocks, strict=True))


def time_in_turns(
    works: Mapping[Key, Work], block_seconds: float, rounds: int, on_block: Callable[[], None] = lambda: None
) -> dict[Key, Timing]:
    """Measure each piece of work, all of them in each round, in turn there and back.

    A machine that others use changes its speed while one measures; in turns, that meets all alike.

    Args:
        works: What to measure.
        block_seconds: Each block repeats its work until about so much has passed, at least once.
        rounds: Blocks of each piece of work.
        on_block: Called before each block; may raise to end it all.
    """
    warm_up_seconds, repeats = dict[Key, float](), dict[Key, int]()
    for key, work in works.items():
        on_block()
        started = time.perf_counter()
        work(_WARM_UPS)
        warm_up_seconds[key] = time.perf_counter() - started
        wanted = block_seconds / max(work(1), block_seconds / _MOST_REPEATS)
        repeats[key] = max(1, math.ceil(wanted))
    blocks: dict[Key, list[float]] = {key: [] for key in works}
    for turn in range(rounds):
        for key in works if turn % 2 == 0 else reversed(list(works)):
            on_block()
            blocks[key].append(works[key](repeats[key]))
    return {key: Timing(tuple(blocks[key]), warm_up_seconds[key]) for key in works}


class TimedBatches:
    """A loader that gives one batch many times, and times what is done with it.

    Args:
        batch: What a client's loader gives.
        count: How many times.
        device: Where it is trained on.

    Attributes:
        seconds: Wall, from when the first is given until whoever took the last asks for another, or stops.
    """

    def __init__(self, batch: Any, count: int, device: torch.device) -> None:
        self.seconds = 0.0
        self._batch, self._count, self._device = batch, count, device

    def __len__(self) -> int:
        """As often as it is given."""
        return self._count

    def __iter__(self) -> Iterator[Any]:
        """The batch, again and again."""
        clock = Clock(self._device)
        try:
            for _ in range(self._count):
                yield self._batch
        finally:
            self.seconds = clock.seconds()


class Clock:
    """Wall seconds since it was made.

    Args:
        device: A GPU ends what it was given first.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = self._now()

    def seconds(self) -> float:
        """Seconds since the stopwatch was made."""
        return self._now() - self._started

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
