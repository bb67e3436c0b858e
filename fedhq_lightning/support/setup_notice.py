"""The line that a terminal shows while a run is set up: to import torch alone takes seconds."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from fedhq_lightning.support.text import printable

_CLEAR_LINE = "\r\x1b[2K"
_shown_on: list[TextIO] = []
"""The terminal that has the line; empty where there is none."""


@contextmanager
def setting_up(what: str) -> Iterator[None]:
    """Say on a terminal, and only there, what is being set up, until `clear_notice` is called or the block ends.

    Args:
        what: Such as a recipe's name.
    """
    terminal = sys.stdout
    if terminal.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        # A line that wraps could not be cleared.
        terminal.write(f"setting up {printable(what, terminal.encoding)} ..."[: shutil.get_terminal_size().columns - 1])
        terminal.flush()
        _shown_on.append(terminal)
    try:
        yield
    finally:
        clear_notice()


def clear_notice() -> None:
    """Make room for what comes in place of the line."""
    while _shown_on:
        terminal = _shown_on.pop()
        terminal.write(_CLEAR_LINE)
        terminal.flush()
