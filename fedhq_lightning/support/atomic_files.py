"""Files that are either whole or not there."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedhq_lightning.errors import ConfigurationError

_LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
"""Name of a file that is being written, as `tempfile` completes it, with the name that it will have."""


def write_atomically(path: Path, data: bytes | memoryview | str) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old content or the new, never a part.

    Args:
        path: Target; its folder exists.
        data: Bytes, or text to be written as UTF-8.

    Raises:
        ConfigurationError: The disk is full, the folder is gone, or the like.
    """
    content = data.encode() if isinstance(data, str) else data
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what shall be at `path` once the block has ended well; for what is too large to hold as bytes.

    Raises:
        ConfigurationError: As in `write_atomically`.
    """
    with told_to_user(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            yield Path(name)
            os.fsync(descriptor)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a folder; nobody may be writing there."""
    for path in folder.glob(".*"):
        if _LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, as a file's `fsync` has its content there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def told_to_user(path: Path) -> Iterator[None]:
    """Make what the disk refuses to `path` an error that the user can mend.

    Raises:
        ConfigurationError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror or error})") from error
