"""Where the wall time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[PhaseClock | None] = ContextVar("current", default=None)


class PhaseClock:
    """Wall seconds by phase, on this process. One phase runs at any time, so that all together are the whole.

    Args:
        phase: Name of the one that runs where no other does.
        began: When it began, by `time.perf_counter`; now unless given.

    Attributes:
        on_phase: Told the name of every phase that `phase` begins.
    """

    def __init__(self, phase: str, began: float | None = None) -> None:
        self.on_phase: Callable[[str], None] = lambda name: None
        self._seconds: dict[str, float] = {}
        self._earlier: dict[str, float] = {}
        self._running = phase, time.perf_counter() if began is None else began

    def own(self) -> dict[str, float]:
        """Seconds that this process took so far, by phase. Another thread may ask."""
        seconds, (phase, since) = dict(self._seconds), self._running
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - since
        return seconds

    def read(self) -> dict[str, float]:
        """Seconds so far, by phase, those of earlier processes of the same run included."""
        seconds = self.own()
        for name, value in self._earlier.items():
            seconds[name] = seconds.get(name, 0.0) + value
        return seconds

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds since an earlier `read`, by phase."""
        return {name: seconds - before.get(name, 0.0) for name, seconds in self.read().items()}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count in what an earlier process of the same run took."""
        for name, value in seconds.items():
            self._earlier[name] = self._earlier.get(name, 0.0) + value

    def go_on_with(self, phase: str) -> None:
        """From now on another phase runs where no other does."""
        self._switch(phase)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Have a phase run; the one that it interrupts goes on after it."""
        outer = self._switch(name)
        try:
            self.on_phase(name)
            yield
        finally:
            self._switch(outer)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Within, `phase_of_run` is measured by this clock."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def _switch(self, phase: str) -> str:
        now = time.perf_counter()
        before, since = self._running
        self._seconds[before] = self._seconds.get(before, 0.0) + now - since
        self._running = phase, now
        return before


@contextmanager
def phase_of_run(name: str) -> Iterator[None]:
    """A phase of the run that is under way, for what is too deep in the house to have its clock; none is no mistake."""
    clock = _current.get()
    if clock is None:
        yield
        return
    with clock.phase(name):
        yield
