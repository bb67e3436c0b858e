"""Processes beside this one that run cells and trials."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

from fedhq_lightning.support.quiet import say_line, show_warnings
from fedhq_lightning.support.signals import exit_code_of, stoppable

Job = TypeVar("Job")
Result = TypeVar("Result")

_SECONDS_BETWEEN_LOOKS = 2.0
_MOST_SECONDS_TO_END = 20.0
INTERRUPTED = 128 + signal.SIGTERM
"""Exit code of a process that was told to stop, as a shell has it."""


@dataclass(frozen=True)
class Ended(Generic[Job, Result]):
    """A job that has ended, one way or another.

    Attributes:
        job: As it was given.
        worker: Number of the process, from 1.
        result: What the call returned.
        error: What it raised, with its traceback as a note; None where it returned.
        exit_code: Of the process, where that died in the job; else None.
    """

    job: Job
    worker: int
    result: Result | None = None
    error: Exception | None = None
    exit_code: int | None = None


class Workers(Generic[Job, Result]):
    """Processes that run one call for job after job; a context manager, and when it is left they have ended.

    They start afresh (spawn), show this package's warnings and no others, and end when this process does. Ctrl-C and
    SIGHUP are left to this process: when the block is left by an error, every job under way is interrupted by SIGTERM,
    as Ctrl-C would, and killed where it does not end of that.

    Args:
        call: A function of a module; what it takes and returns is sent between the processes.
        count: Processes.
    """

    def __init__(self, call: Callable[[Job], Result], count: int) -> None:
        self._call = call
        self._count = count
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Job] = {}

    def __enter__(self) -> Workers[Job, Result]:
        self._idle = [_Worker(number, self._call) for number in range(1, self._count + 1)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for worker in [*self._idle, *self._busy]:
            worker.dismiss(is_urgent=error is not None)
        for worker in [*self._idle, *self._busy]:
            worker.process.join(None if error is None else _MOST_SECONDS_TO_END)
            worker.process.kill()

    @property
    def num_idle(self) -> int:
        """Processes that wait for a job."""
        return len(self._idle)

    @property
    def num_busy(self) -> int:
        """Jobs under way."""
        return len(self._busy)

    def start(self, job: Job) -> None:
        """Give a job to an idle process."""
        worker = self._idle.pop(0)
        worker.give(job)
        self._busy[worker] = job

    def wait(self) -> Ended[Job, Result]:
        """The next job that ends; there must be one under way."""
        [pipe, *_] = wait([worker.pipe for worker in self._busy])
        worker = next(worker for worker in self._busy if worker.pipe is pipe)
        job = self._busy.pop(worker)
        try:
            result, error = worker.pipe.recv()
        except (EOFError, ConnectionResetError):  # reset where it left its job unread
            worker.process.join()
            return Ended(job, worker.number, exit_code=worker.process.exitcode)
        self._idle.append(worker)
        return Ended(job, worker.number, result, error)


class _Worker:
    """One process, and the pipe to it."""

    def __init__(self, number: int, call: Callable[[Any], Any]) -> None:
        self.number = number
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        self.process: BaseProcess = context.Process(target=_run_calls, args=(far_end, os.getpid()))
        self.process.start()
        far_end.close()
        # Not among the arguments: to load it takes seconds, and until the process has begun Ctrl-C would end it.
        self.give(call)

    def give(self, job: Any) -> None:
        with suppress(BrokenPipeError):  # it has died: waiting for it tells
            self.pipe.send(job)

    def dismiss(self, is_urgent: bool) -> None:
        if is_urgent:
            self.process.terminate()
        self.pipe.close()


def _run_calls(pipe: Connection, parent: int) -> None:
    """What a process does: it gets the call, then job after job, until no more can come."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    show_warnings(lambda line: say_line(f"fedhq: {line}", sys.stderr))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with stoppable(second_ends=False), suppress(EOFError, BrokenPipeError):
            call = pipe.recv()
            while True:
                pipe.send(_answer(call, pipe.recv()))
    except KeyboardInterrupt as interruption:
        raise SystemExit(exit_code_of(interruption)) from None


def _answer(call: Callable[[Any], Any], job: Any) -> tuple[Any, Exception | None]:
    try:
        return call(job), None
    except Exception as error:
        error.add_note(f"In another process:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever a class of errors does when it is copied
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
