"""The line that a terminal shows while a run is set up: to import torch alone takes seconds."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedhq_lightning.support.text import printable

_CLEAR_LINE = "\r\x1b[2K"
_shown: list[str] = []
"""What is being set up, the innermost last, of which the terminal shows that one."""


@contextmanager
def setting_up(what: str) -> Iterator[None]:
    """Say on a terminal, and only there, what is being set up, until `clear_notice` is called or the block ends.

    Within another such block the line is that of the inner one for as long as it lasts.

    Args:
        what: Such as a recipe's name.
    """
    depth = len(_shown)
    if sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        _erase()
        _shown.append(f"setting up {what} ...")
        _draw()
    try:
        yield
    finally:
        if len(_shown) > depth:
            _erase()
            del _shown[depth:]
            _draw()


@contextmanager
def notice_aside() -> Iterator[None]:
    """Room for another line, after which the notice goes on."""
    _erase()
    try:
        yield
    finally:
        _draw()


def clear_notice() -> None:
    """Make room for what comes in place of the line."""
    _erase()
    _shown.clear()


def _erase() -> None:
    if _shown:
        sys.stdout.write(_CLEAR_LINE)
        sys.stdout.flush()


def _draw() -> None:
    if _shown:
        # A line that wraps could not be cleared.
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write(printable(_shown[-1], sys.stdout.encoding)[:width])
        sys.stdout.flush()
