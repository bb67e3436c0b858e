"""Where the wall time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class PhaseClock:
    """Wall seconds by phase, on this process. One phase runs at any time, so that all together are the whole.

    Args:
        phase: Name of the one that runs where no other does.
    """

    def __init__(self, phase: str) -> None:
        self._seconds: dict[str, float] = {}
        self._phase = phase
        self._since = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Seconds so far, by phase."""
        self._switch(self._phase)
        return dict(self._seconds)

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds since an earlier `read`, by phase."""
        return {name: seconds - before.get(name, 0.0) for name, seconds in self.read().items()}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count in what an earlier process of the same run took."""
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Have a phase run; the one that it interrupts goes on after it."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, phase: str) -> str:
        now = time.perf_counter()
        before = self._phase
        self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before
