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
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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
    libraries read when they are imported, do nothing here. The second process, which Lightning starts like the first,
    is forked too.

    Args:
        arguments: `-m MODULE` or a script, and what it is given.
        cwd: Its folder, else this process's.
        env: Its environment in place of this one.
        start_new_session: It leads a process group of its own.
        has_real_second: Whether Lightning starts an interpreter for the second process, as it does for users.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        has_real_second: bool = False,
    ) -> None:
        self.args = arguments
        self._printed = [tempfile.TemporaryFile("a+", encoding="utf-8") for _ in ("output", "errors")]  # noqa: SIM115
        ends = [Connection(os.dup(file.fileno())) for file in self._printed]
        place = str(cwd or Path.cwd()), dict(os.environ if env is None else env)
        how = start_new_session, has_real_second
        self._process = FORKING.Process(target=_run, args=(arguments, ends, *place, *how))
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
    arguments: tuple[str, ...],
    ends: list[Connection],
    folder: str,
    environment: Mapping[str, str],
    is_leader: bool,
    has_real_second: bool,
) -> None:
    """Be the program, in streams, a folder and, where asked, a process group of its own."""
    if is_leader:
        os.setsid()
    for number, end in enumerate(ends, start=1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    os.chdir(folder)
    if not has_real_second:
        _Second(arguments)
    _execute(arguments, environment)


def _execute(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Environment, arguments and import path of a program, then it, and what ends it."""
    os.environ.clear()
    os.environ.update(environment)
    as_module = arguments[0] == "-m"
    sys.argv = list(arguments[1:] if as_module else arguments)
    sys.path.insert(0, os.getcwd() if as_module else str(Path(arguments[0]).parent.absolute()))
    try:
        if as_module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # an interpreter's own end, in its order
        atexit._run_exitfuncs()


class _Second:
    """What this process gets when it starts itself once more by `subprocess.Popen`: forked by now, it waits to be told.

    Args:
        arguments: Of this program.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.returncode: int | None = None
        self._pipe, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._pipe.close()
            os._exit(_exit_code(theirs))
        theirs.close()
        first = ("-m", arguments[1]) if arguments[0] == "-m" else (os.path.abspath(arguments[0]),)
        popen = subprocess.Popen

        def start(command: Any, *others: Any, env: Mapping[str, str] | None = None, **settings: Any) -> Any:
            if list(command[1 : 1 + len(first)]) != list(first):
                return popen(command, *others, env=env, **settings)
            self._pipe.send((command[1:], dict(os.environ if env is None else env)))
            return self

        subprocess.Popen = start  # type: ignore[assignment,misc]  # here alone

    def poll(self) -> int | None:
        """As of `subprocess.Popen`, like the next."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _exit_code(told: Connection) -> int:
    """Be the second process, once it is wanted."""
    try:
        arguments, environment = told.recv()
    except (EOFError, KeyboardInterrupt):
        return 0
    try:
        _execute(arguments, environment)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
