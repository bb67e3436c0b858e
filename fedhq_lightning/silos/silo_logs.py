"""The records that rank 0 leaves of a federation of silos, beside the Trainer's own logs."""

from __future__ import annotations

from pathlib import Path

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.support.atomic_files import told_to_user


class SiloLogs:
    """`rounds.jsonl`, one line a round with a record of every silo, and what the allocator writes.

    Args:
        folder: Made if needed; None writes nothing.
        writes: Whether this process does.
    """

    def __init__(self, folder: Path | None, writes: bool) -> None:
        self._directory = RunDirectory(folder) if writes and folder is not None else None

    def rewind(self, rounds: int) -> None:
        """Forget rounds of an earlier fit, or those after the checkpoint that this one goes on from."""
        directory = self._directory
        if directory is None:
            return
        with told_to_user(directory.path):
            directory.path.mkdir(parents=True, exist_ok=True)
        if directory.rounds_file.exists():
            # `RunDirectory` counts round 0 too, which a Trainer has none of.
            directory.rewind(rounds - 1)

    def write(self, record: RoundRecord, allocator: Allocator | None) -> None:
        """Add one round."""
        if self._directory is None:
            return
        self._directory.append_round(record)
        if allocator is not None:
            allocator.write(self._directory.path)
