"""Programs that tests start, forked from a process that has the package and its libraries imported."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        *("fedhq_lightning.launch.resolve", "fedhq_lightning.finish.complete", "fedhq_lightning.experiments.run_study"),
        *("fedhq_lightning.silos", "fedhq_lightning.drop_in", "sklearn.datasets", "torch.export", __name__),
    ]
)


class Program:
    """What `python ARGUMENTS` would run, without the seconds that its imports take. As `subprocess.Popen` otherwise.

    For tests about what a program does, not about how it starts: options of the interpreter, and settings that
    libraries read when they are imported, do nothing here. Processes that Lightning starts from it are real ones.

    Args:
        arguments: `-m MODULE` or a script, and what it is given.
        cwd: Its folder, else this process's.
        env: Its environment in place of this one.
        start_new_session: It leads a process group of its own.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = arguments
        self._printed = [tempfile.TemporaryFile("a+", encoding="utf-8") for _ in ("output", "errors")]  # noqa: SIM115
        ends = [Connection(os.dup(file.fileno())) for file in self._printed]
        place = str(cwd or Path.cwd()), dict(os.environ if env is None else env)
        self._process = FORKING.Process(target=_run, args=(arguments, ends, *place, start_new_session))
        self._process.start()
        for end in ends:
            end.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, and -N once signal N has ended it."""
        return self._process.exitcode

    poll = returncode.fget

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it has printed, once it has ended. To be asked once.

        Raises:
            subprocess.TimeoutExpired: It still runs after that many seconds.
        """
        self._process.join(timeout)
        output, errors = (os.pread(file.fileno(), 2**30, 0).decode() for file in self._printed)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0, output, errors)
        for file in self._printed:
            file.close()
        return output, errors

    def kill(self) -> None:
        """At once; nothing where it has ended."""
        self._process.kill()


def run_program(
    *arguments: str, seconds: float = 240, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A `Program` to its end; what still runs after so many seconds is killed, and `subprocess.TimeoutExpired`."""
    program = Program(*arguments, cwd=cwd, env=env)
    try:
        printed = program.communicate(seconds)
    finally:
        program.kill()
    assert program.returncode is not None
    return subprocess.CompletedProcess(arguments, program.returncode, *printed)


def _run(
    arguments: tuple[str, ...], ends: list[Connection], folder: str, environment: Mapping[str, str], is_leader: bool
) -> None:
    """Be the program: its streams, folder, environment, arguments and import path; then it, and what ends it."""
    if is_leader:
        os.setsid()
    for number, end in enumerate(ends, start=1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    as_module = arguments[0] == "-m"
    sys.argv = list(arguments[1:] if as_module else arguments)
    sys.path.insert(0, folder if as_module else str(Path(arguments[0]).parent.absolute()))
    try:
        if as_module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # an interpreter's own end, in its order
        atexit._run_exitfuncs()
