"""Updates that wait for the others: whether they count shows only when all have come."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedhq_lightning.federated.update_checks import Norms
from fedhq_lightning.support.atomic_files import told_to_user
from fedhq_lightning.types import ClientId

_MOST_IN_MEMORY = 2**26
"""Bytes; what is more lies in a file without a name, which is gone with the process."""


@dataclass(frozen=True)
class HeldUpdate:
    """An update as it came.

    Attributes:
        client_id: Who sent it.
        num_examples: Its weight.
        norms: Of its parameters and of its buffers.
    """

    client_id: ClientId
    num_examples: int
    norms: Norms


class HeldUpdates:
    """The payloads that one process holds back in a round."""

    def __init__(self) -> None:
        self._in_memory: deque[tuple[HeldUpdate, bytes]] = deque()
        self._in_file: list[tuple[HeldUpdate, int]] = []
        self._file: IO[bytes] | None = None
        self._num_bytes = 0

    def add(self, update: HeldUpdate, payload: bytes) -> None:
        """Keep one.

        Raises:
            ConfigurationError: The folder for temporary files is full.
        """
        self._num_bytes += len(payload)
        if self._num_bytes <= _MOST_IN_MEMORY:
            self._in_memory.append((update, payload))
            return
        with told_to_user(Path(tempfile.gettempdir())):
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # `take` closes it
            self._file.write(payload)
            self._file.flush()
        self._in_file.append((update, len(payload)))

    def take(self) -> Iterator[tuple[HeldUpdate, bytes]]:
        """All of them, one at a time; to be called once."""
        while self._in_memory:
            yield self._in_memory.popleft()
        if self._file is not None:
            with self._file as file:
                file.seek(0)
                for update, num_bytes in self._in_file:
                    yield update, file.read(num_bytes)
