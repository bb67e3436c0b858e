"""Locks between processes, on a file each; the system frees a lock when its process ends, killed or not."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.atomic_files import told_to_user

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system says that has none: whoever works there takes care of it alone."""


@contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Hold a file's lock for the length of the block.

    Args:
        path: The lock's file; it and its folder are made if they are not there, and left.
        refusal: What to say where another process holds it; None to wait until it is free.

    Raises:
        ConfigurationError: It is held and there is a refusal, or the file cannot be made.
    """
    lock = _lock_of(path)
    with told_to_user(path):
        try:
            lock.acquire(timeout=-1 if refusal is None else 0)
        except Timeout:
            raise ConfigurationError(refusal) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; no where the file system has no locks."""
    if not path.exists():
        return False
    lock = _lock_of(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def _lock_of(path: Path) -> FileLock:
    # A lock that is the file's existence would outlive a killed process.
    return FileLock(path, fallback_to_soft=False)
