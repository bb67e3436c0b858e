"""What the user's terminal shows: known noise of libraries kept off it by name, and warnings as lines of their own.

A warning is noise only where its text is known and nobody can act on it. All others are shown, whoever gives them: they
may be those of the user's own code, which runs inside of nearly everything here.
"""

import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from fedhq_lightning.support.text import printable


@contextmanager
def libraries_quiet(*loggers: str, level: int = logging.WARNING, noise: Sequence[str] = ()) -> Iterator[None]:
    """Without what some libraries log below a level, and without some warnings; afterwards all is as it was.

    Args:
        loggers: Names of the libraries' loggers.
        level: What still shows.
        noise: Regular expressions for the beginnings of warnings that are ignored.
    """
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            for text in noise:
                warnings.filterwarnings("ignore", text)
            yield
    finally:
        for name, own in before.items():
            logging.getLogger(name).setLevel(own)


def show_warnings(say: Callable[[str], None]) -> None:
    """Warnings as one line each, and each text once, from now on.

    Ours always; which of the others, Python's own filters decide, and with them whoever started it (`-W`,
    PYTHONWARNINGS).

    Args:
        say: Shows a line.
    """
    warnings.filterwarnings("default", module=r"fedhq_lightning")
    warnings.filterwarnings("default", module=r"lightning\.fabric\.utilities\.rank_zero", category=UserWarning)
    said = set[str]()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = f"warning: {' '.join(str(message).split())}"
        if text not in said:
            said.add(text)
            say(text)

    warnings.showwarning = show


def nobody_reads() -> bool:
    """Whether the other end of this process's output is closed, as of `fedhq ls | head`."""
    return any(_is_closed(stream) for stream in (sys.stdout, sys.stderr))


def write_nowhere() -> None:
    """Let go of output that nobody reads: Python would complain at its exit of what it could not write."""
    for stream in (sys.stdout, sys.stderr):
        if _is_closed(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _is_closed(stream: TextIO) -> bool:
    try:
        asked = select.poll()
        asked.register(stream.fileno(), 0)
        return any(answer & select.POLLERR for _, answer in asked.poll(0))
    except (OSError, ValueError, AttributeError):  # no file, as in a test or a notebook
        return False


def say_line(line: str, stream: TextIO) -> None:
    """Print a line, or several, in one write, so that processes that share a terminal or a file do not mix their lines.

    `print` writes a line's end apart from the line where Python does not buffer, as in most containers. Control
    characters, and what the stream's encoding lacks, are written as escapes.
    """
    stream.write(f"{printable(line, stream.encoding)}\n")
    stream.flush()
