"""Whether the other processes of a run still answer: each tells a store that all of them reach, twice a second.

A process that computes for long goes on telling, in a thread; one that is stopped, killed or cut off does not. It takes
nothing from gloo or NCCL, whose own limits cannot tell the one from the other.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import TCPStore

from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.support.quiet import say_line
from fedhq_lightning.support.signals import Stopped, raise_in_first_thread

FOREVER = timedelta(days=1)
_SECONDS_BETWEEN_LOOKS = 0.5
_LONGEST_STEP = 2.0
"""Seconds that one look may count: whoever was stopped itself has not watched the others meanwhile."""
_SECONDS_TO_NOTICE = 10.0
_SECONDS_TO_FIND = 5.0
_LONGEST_WORDS = 2000
_started: list[Watch] = []


@dataclass(frozen=True)
class Lost:
    """Another process that this one cannot go on without.

    Attributes:
        rank: Whose.
        error: What this process ends by.
        is_told: Whether that process tells the user why.
    """

    rank: int
    error: Exception
    is_told: bool = False


def current_watch() -> Watch | None:
    """This process's, once it has met the others."""
    return _started[-1] if _started else None


class Watch:
    """Beats for this process and looks after the others; `start` begins, and it lasts as long as the process.

    One thread talks to the store, where it may wait for ever if the first process, which has it, is stopped; another
    judges by what the first has heard.

    Args:
        store: A connection of its own, on which this process tells; it listens on another.
        rank: This process's.
        count: Processes.
        children: Those that this process has started, by rank, as of `subprocess.Popen`.
        tells: Whether the user hears from this process that another is lost.
    """

    def __init__(
        self, store: TCPStore, rank: int, count: int, children: Mapping[int, Any], tells: Callable[[Lost], bool]
    ) -> None:
        self.rank = rank
        self.children = children
        self.tells = tells
        self.lost: Lost | None = None
        self._telling, self._store = store, store.clone()  # type: ignore[attr-defined]  # not in torch's stub
        self._store.set_timeout(FOREVER)
        store.set(key_of(rank), "0")  # others may ask for it before the first beat
        self._keys = [key_of(each) for each in range(count)]
        self._heard: list[bytes] | None = None
        self._seen: dict[int, bytes] = {}
        self._silent = {each: 0.0 for each in range(count) if each != rank}
        self._exited = set[int]()
        self._found: Lost | None = None
        self._allowed: float | None = None
        self._telling_or_ended = threading.Lock()
        self._has_ended = False
        self._noticed, self._stops = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._talk, self._judge)]

    def start(self) -> None:
        """Begin to beat and to look."""
        _started.append(self)
        for each in self._threads:
            each.start()

    @contextmanager
    def judging(self, seconds: float) -> Iterator[None]:
        """Within, a process that ends, or is silent for so many seconds, ends this one too.

        Args:
            seconds: Silence that is allowed.

        Raises:
            Exception: `Lost.error`, in the thread that waits for the others or, where it can be, in the first thread.
        """
        self.judge(seconds)
        try:
            yield
        finally:
            self.stand_down()

    def judge(self, seconds: float) -> None:
        """Judge from now on, until `stand_down`."""
        self._silent = dict.fromkeys(self._silent, 0.0)
        self._allowed = seconds

    def stand_down(self) -> None:
        """Judge nobody any more: this process is about to end, or has no need of the others."""
        self._allowed = None

    def check(self) -> None:
        """Raise what ends this process, where another is lost."""
        if self.lost is not None:
            self._noticed.set()
            raise self.lost.error from None  # what gloo says of it names nobody

    def find_lost(self) -> None:
        """Once a collective has failed: name the process that is lost, within seconds, and raise.

        Raises:
            Exception: `Lost.error`.
        """
        deadline = time.monotonic() + _SECONDS_TO_FIND
        while self._found is None and time.monotonic() < deadline:
            time.sleep(0.05)
        rank, silent = max(self._silent.items(), key=lambda each: each[1])
        if self._found is None and silent > 2 * _SECONDS_BETWEEN_LOOKS:
            self._found = gone(rank)
        self.lost = self.lost or self._found
        self.check()

    def end(self, error: BaseException | None) -> None:
        """Tell the others that this process ends, and by what; the first time counts."""
        with self._telling_or_ended:
            if not self._has_ended:
                self._has_ended = True
                because = None if self.lost is None else self.lost.rank
                with suppress(RuntimeError):  # nobody is there to hear
                    self._telling.set(key_of(self.rank), record_of(error, because))
        self._noticed.set()

    def stop(self) -> None:
        """Before the interpreter ends, which would take down a thread that is in the store's code, and with it all."""
        if self.rank == 0 and not self._has_ended:
            self.end(None)
            self.wait_for_records(self.others, 2 * _SECONDS_BETWEEN_LOOKS)  # that they hear it: the store ends
        self.end(None)
        self._stops.set()
        for each in self._threads:
            each.join(2 * _SECONDS_BETWEEN_LOOKS)

    def record(self, rank: int) -> dict[str, Any] | None:
        """By what another process has ended, as it told and was heard; None else."""
        return None if self._heard is None else record_in(self._heard[rank])

    def wait_for_records(self, ranks: Iterable[int], seconds: float) -> None:
        """Until the others have told by what they end; the store of the first ends with it."""
        deadline, ranks = time.monotonic() + seconds, list(ranks)
        while time.monotonic() < deadline and not all(self.record(each) for each in ranks):
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    @property
    def others(self) -> list[int]:
        """Their ranks."""
        return list(self._silent)

    def _talk(self) -> None:
        with suppress(RuntimeError):
            for beat in itertools.count(1):
                with self._telling_or_ended:
                    if not self._has_ended:
                        self._telling.set(key_of(self.rank), str(beat))
                self._heard = list(self._store.multi_get(self._keys))
                if self._stops.wait(_SECONDS_BETWEEN_LOOKS):
                    return
        if (record := self.record(0)) is None or record["kind"] is not None:
            self._found = self._found or gone(0)

    def _judge(self) -> None:
        last, heard = time.monotonic(), self._heard
        while self._found is None or self._allowed is None:  # who has done its part may end before this one
            if self._stops.wait(_SECONDS_BETWEEN_LOOKS):
                return
            now = time.monotonic()
            elapsed, last = min(now - last, _LONGEST_STEP), now
            if self._found is None:
                self._found = self._ended_child() or self._silent_one(elapsed, is_heard=self._heard is not heard)
            heard = self._heard
        self.lost = self._found
        is_raised = raise_in_first_thread(self._raise_once)
        if not self._noticed.wait(_SECONDS_TO_NOTICE if is_raised else _SECONDS_TO_NOTICE / 5):
            self._end_at_once()

    def _silent_one(self, elapsed: float, is_heard: bool) -> Lost | None:
        """A process that has ended or is silent, `elapsed` seconds later; the first, if nothing is heard at all."""
        lost = None
        for rank in self._silent if is_heard else ([0] if self.rank else []):
            value = b"" if self._heard is None else self._heard[rank]
            record = record_in(value) if is_heard else None
            if record is not None and record["kind"] is not None:
                lost = lost or lost_by_record(rank, record)
            elif is_heard and value != self._seen.get(rank):
                self._seen[rank], self._silent[rank] = value, 0.0
            else:
                self._silent[rank] += elapsed
                if self._allowed is not None and self._silent[rank] > self._allowed:
                    lost = lost or silent(rank, self._allowed)
        return lost

    def _ended_child(self) -> Lost | None:
        """A child that has ended; one look later, for it may have told by what."""
        for rank, child in self.children.items():
            if (code := child.poll()) is None:
                continue
            record = self.record(rank)
            if record is not None and record["kind"] is not None:
                return lost_by_record(rank, record)
            if record is not None and not code:
                continue  # it has done its part
            if rank in self._exited:
                error = RunError(words_of_exit(rank, code))
                with suppress(RuntimeError):
                    self._telling.set(key_of(rank), record_of(error, rank))  # which the others cannot know
                return Lost(rank, error)
            self._exited.add(rank)
        return None

    def _raise_once(self) -> None:
        if not self._noticed.is_set():
            self.check()

    def _end_at_once(self) -> None:
        """Where the first thread waits in a library's own collective, or in code that lets no error through."""
        assert self.lost is not None
        if self.tells(self.lost):
            with suppress(OSError):
                say_line(f"{self.lost.error}", sys.stderr)
        self.end(self.lost.error)
        for child in self.children.values():
            child.send_signal(signal.SIGKILL)
        os._exit(1)


def silent(rank: int, seconds: float) -> Lost:
    """A process that is there, as far as can be told, and does not answer."""
    words = f"process {rank} has not answered for {seconds:g} s (trainer.process_timeout): it is stopped, or its "
    return Lost(rank, RunError(f"{words}machine or the network hangs"))


def gone(rank: int) -> Lost:
    """A process that ended without a word, out of this one's sight."""
    return Lost(rank, RunError(f"process {rank} is gone: its connections are closed"))


def key_of(rank: int) -> str:
    """Where a process tells of itself: a number that grows, then by what it has ended."""
    return f"process {rank}"


def record_of(error: BaseException | None, because: int | None) -> str:
    """By what a process ends, for the others.

    Args:
        error: None where it has done its part.
        because: The process that it ends because of; None where the error is its own.
    """
    kind = None if error is None else type(error).__name__
    kind = next((each.__name__ for each in (ConfigurationError, RunError) if isinstance(error, each)), kind)
    words = error.number.name if isinstance(error, Stopped) else str(error)
    return json.dumps({"kind": kind, "words": words[:_LONGEST_WORDS], "because": because})


def record_in(value: bytes) -> dict[str, Any] | None:
    """What a process has told, if it has ended."""
    return json.loads(value) if value.startswith(b"{") else None


def lost_by_record(rank: int, record: Mapping[str, Any]) -> Lost:
    """A process that has told by what it ends: of the same the others end, and it tells the user."""
    kind, words = record["kind"], record["words"]
    if kind == ConfigurationError.__name__:
        return Lost(rank, ConfigurationError(words), is_told=True)
    if kind == RunError.__name__:
        because = record["because"]
        return Lost(rank if because is None else because, RunError(words), is_told=because != rank)
    if kind is None:
        return Lost(rank, RunError(f"process {rank} has ended before the others; give all of them the same to do"))
    if kind in (Stopped.__name__, KeyboardInterrupt.__name__):
        return Lost(rank, RunError(f"process {rank} was stopped by {words or 'Ctrl-C'}"), is_told=rank == 0)
    return Lost(rank, RunError(f"process {rank} failed: {kind}: {words}"), is_told=True)


def words_of_exit(rank: int, code: int) -> str:
    """That a process has ended without a word."""
    if code >= 0:
        return f"process {rank} has ended with exit code {code}; see what it said"
    name = signal.Signals(-code).name
    hint = ", as the system does where memory is short" if name == "SIGKILL" else ""
    return f"process {rank} was ended by {name}{hint}"
