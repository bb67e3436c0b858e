"""Files that anybody may have written: read within limits, or refused in one sentence."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError

MOST_TEXT_BYTES = 2**20
"""Of a recipe or another file that somebody writes by hand: hundreds of times the longest recipe there is."""
_SURROGATE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """What a file holds.

    Args:
        path: A regular file: no folder, pipe or device, which may be endless or keep one waiting.
        most_bytes: That it may hold.

    Raises:
        ConfigurationError: `PATH: reason`: it is not there, cannot be read, is no regular file, or is larger.
    """
    try:
        # Not blocking: to open a pipe that nobody writes into would wait for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"{path}: is a pipe or a device; give a file")
            # One more than may be there: the files of /proc have no size.
            content = b"" if status.st_size > most_bytes else file.read(most_bytes + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # of a path that the system cannot even be asked for
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{str(path)!r}: no path ({error})") from error
    if max(len(content), status.st_size) > most_bytes:
        raise ConfigurationError(f"{path}: is larger than {most_bytes:,} bytes, the most that is read here")
    return content


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


def parse_json(text: str) -> Any:
    """What JSON says.

    Raises:
        ConfigurationError: It is no JSON, nests too deeply, has a number of thousands of digits, or half of a character
            (a lone surrogate), which no file can be written with.
    """
    try:
        found = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError("no JSON: half of a character") from error
    except ValueError as error:
        raise ConfigurationError(f"no JSON: {error}") from error
    except RecursionError as error:
        raise ConfigurationError("no JSON that is read here: it nests too deeply") from error
    return found
