"""A logger in a thread of its own: it can neither end the run nor hold it up."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.support.text import first_line

_MOST_WAITING = 1000
"""Calls of a logger that does not come back; later ones are dropped."""


class Guest:
    """Calls a logger, one call after another in their order, while the run goes on.

    What goes wrong is warned of once, from the thread that uses the guest.

    Args:
        name: Of the logger, for what is said about it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue(_MOST_WAITING)
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._has_failed = False
        self._num_done, self._num_given = 0, 0
        self._thread: threading.Thread | None = None

    def call(self, action: Callable[[], None]) -> None:
        """Have the thread call it, after all that it was given before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"{self._name} of a run", daemon=True)
            self._thread.start()
        try:
            self._calls.put_nowait(action)
            self._num_given += 1
        except queue.Full:
            self._failed("it has not answered for so long that values are dropped")
        self._tell()

    def wait(self, seconds: float) -> bool:
        """Until all calls are done; or one of them has taken so long.

        Args:
            seconds: For each call.

        Returns:
            Whether all are done.
        """
        done, since = self._num_done, time.monotonic()
        while self._num_done < self._num_given and time.monotonic() - since < seconds:
            time.sleep(0.005)
            if self._num_done != done:
                done, since = self._num_done, time.monotonic()
        self._tell()
        return self._num_done == self._num_given

    def give_up(self, why: str) -> None:
        """Wait for it no more."""
        self._failed(why)
        self._tell()

    def notice(self, text: str) -> None:
        """A warning, which is shown from the thread that uses the guest."""
        self._notices.put(text)

    def _run(self) -> None:
        while True:
            action = self._calls.get()
            try:
                action()
            except Exception as error:  # of a logger, which may be the user's
                self._failed(f"{type(error).__name__}: {first_line(error)}")
            self._num_done += 1

    def _failed(self, why: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self.notice(
                f"{self._name} failed, and the run goes on without what it would have logged ({why}; said once; "
                "rounds.jsonl has all rounds)"
            )

    def _tell(self) -> None:
        while not self._notices.empty():
            rank_zero_warn(self._notices.get())
