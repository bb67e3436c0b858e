"""Files that are either whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedhq_lightning.errors import ConfigurationError


def write_atomically(path: Path, data: bytes | str) -> None:
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
