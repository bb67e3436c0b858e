"""A round's updates, all of them, until a rule has looked at them: in memory while they are small, else in files."""

from __future__ import annotations

import tempfile
from mmap import ACCESS_READ, mmap
from pathlib import Path

import xxhash

from fedhq_lightning.support.atomic_files import told_to_user

_MOST_IN_MEMORY = 2**28
"""Bytes; each update beyond lies in a file without a name, which is gone with the process."""


class KeptUpdates:
    """Updates as bytes, in an order that follows from what they hold: neither arrival nor sender changes it.

    Of two with the same bytes the one with fewer examples comes first.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[bytes, int, bytes | mmap]] = []
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, data: bytes, num_examples: int) -> None:
        """Keep one.

        Raises:
            ConfigurationError: The folder for temporary files is full.
        """
        digest = xxhash.xxh3_128_digest(data)
        self._num_bytes += len(data)
        fits = self._num_bytes <= _MOST_IN_MEMORY
        self._kept.append((digest, num_examples, data if fits else _in_file(data)))

    def in_order(self) -> list[tuple[bytes | mmap, int]]:
        """Bytes and examples of all of them."""
        return [(data, examples) for _, examples, data in sorted(self._kept, key=lambda each: each[:2])]


def _in_file(data: bytes) -> mmap:
    with told_to_user(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return mmap(file.fileno(), len(data), access=ACCESS_READ)
