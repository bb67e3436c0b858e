"""Seals on what silos send each other, where a folder of keys was given."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fedhq_lightning.federated.seals import Sealer, Seals
from fedhq_lightning.support.collectives import Processes


class SiloSeals:
    """Seals this silo's payloads with `RANK.key`, and opens the others' with their `RANK.pub`.

    Args:
        folder: Of the keys; a silo needs its own private one, and everybody's public ones.
        processes: The silos.

    Raises:
        ConfigurationError: A key is missing or of another kind.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        # Of what every silo drew just now, so that nobody can say again what was said in another run.
        token = hashlib.blake2b(b"".join(processes.gather_bytes(os.urandom(16)))).digest()
        self._sealer = Sealer(folder / f"{processes.rank}.key", token)
        self._seals = Seals(folder, token)
        for rank in range(processes.count):
            self._seals.check(rank)

    def seal(self, payload: bytes) -> bytes:
        """The payload, sealed; nothing stays nothing."""
        return self._sealer.seal(payload) if payload else payload

    def open(self, rank: int | str, sealed: bytes) -> bytes:
        """A silo's payload.

        Raises:
            PayloadError: It is not sealed by that silo.
        """
        return self._seals.open(rank, sealed)
