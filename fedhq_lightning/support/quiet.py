"""What the user's terminal shows: libraries kept off it while we use them, and our own lines whole."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def libraries_quiet(*loggers: str, level: int = logging.ERROR, warnings_of: Sequence[str] = ()) -> Iterator[None]:
    """Without what some libraries log below a level, and without their warnings; afterwards all is as it was.

    Args:
        loggers: Names of the libraries' loggers.
        level: What still shows.
        warnings_of: Regular expressions for modules whose warnings are ignored.
    """
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            for module in warnings_of:
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        for name, own in before.items():
            logging.getLogger(name).setLevel(own)


def show_own_warnings(say: Callable[[str], None]) -> None:
    """Warnings as one line each, and none from libraries, from now on: what a user cannot act on is noise.

    Args:
        say: Shows a line.
    """
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"fedhq_lightning")
    warnings.filterwarnings("default", module=r"lightning\.fabric\.utilities\.rank_zero", category=UserWarning)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")


def say_line(line: str, stream: TextIO) -> None:
    """Print a line in one write, so that processes that share a terminal or a file do not mix their lines.

    `print` writes a line's end apart from the line where Python does not buffer, as in most containers.
    """
    stream.write(f"{line}\n")
    stream.flush()
