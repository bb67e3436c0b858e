"""Files that anybody may have written: read within limits, or refused in one sentence."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedhq_lightning.errors import ConfigurationError

MOST_TEXT_BYTES = 2**20
"""Of a recipe or another file that somebody writes by hand: hundreds of times the longest recipe there is."""


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """What a file holds.

    Args:
        path: A regular file: no folder, pipe or device, which may be endless or keep one waiting.
        most_bytes: That it may hold.

    Raises:
        ConfigurationError: `PATH: reason`: it is not there, cannot be read, is no regular file, or is larger.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        # One more than may be there: the files of /proc have no size.
        content = b"" if size > most_bytes else file.read(most_bytes + 1)
    if max(len(content), size) > most_bytes:
        raise ConfigurationError(f"{path}: is larger than {most_bytes:,} bytes, the most that is read here")
    return content


def read_lines(path: Path, most_bytes: int) -> Iterator[bytes]:
    """The lines of a file, one at a time, each with its end; the last one may lack it.

    Args:
        path: As `read_bytes` takes it.
        most_bytes: Of one line.

    Raises:
        ConfigurationError: As `read_bytes`, or a line is longer.
    """
    with opened(path) as file:
        while line := file.readline(most_bytes + 1):
            if len(line) > most_bytes:
                raise ConfigurationError(f"{path}: has a line of more than {most_bytes:,} bytes, the most that is read")
            yield line


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, opened to be read. What the system says while it is read is told as of the path.

    Raises:
        ConfigurationError: As `read_bytes`, but for the size.
    """
    try:
        # Not blocking: to open a pipe that nobody writes into would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # of a path that the system cannot even be asked for
        raise ConfigurationError(f"{str(path)!r}: no path ({error})") from error
    try:
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigurationError(f"{path}: is a pipe or a device; give a file")
            yield file
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error


def read_text(path: Path, most_bytes: int) -> str:
    """What a file of UTF-8 holds, whatever the locale; a mark that says so at its beginning is left out.

    Raises:
        ConfigurationError: `PATH: reason`: as `read_bytes`, or it is no UTF-8.
    """
    content = read_bytes(path, most_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text (byte {error.start:,})") from error
