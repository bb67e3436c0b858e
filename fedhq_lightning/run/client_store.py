"""What clients keep from round to round, on disk: nothing for clients that never took part.

Each client that keeps anything has a folder, with a file for each round in which it kept it. A round reads the newest
file of a round before it, so a run that goes on from a checkpoint finds what its clients had then, and runs on to the
same bits. Files older than any checkpoint needs are dropped when the client keeps something new. What was read or
written last lies in the page cache of the operating system, which is bounded and shared by all processes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.checkpoint_file import load_checkpoint, to_bytes
from fedhq_lightning.run.round_checkpoint import is_model
from fedhq_lightning.support.atomic_files import told_to_user, write_atomically
from fedhq_lightning.types import StateDict

PERSONAL = "personal"
"""Name of the part in which a client keeps what of its model is its own."""
_NAME = re.compile(r"round-(\d+)\.state")


class ClientStore:
    """The states of a run's clients, by their positions among all clients.

    Args:
        folder: Every process sees the same; made with the first state.
        checkpoints: The rounds that the run may go on from.

    Attributes:
        best_rounds: Rounds that were the best when they came, in order: what clients had after the best one before a
            checkpoint is theirs in the model that it would deploy.
    """

    def __init__(self, folder: Path, checkpoints: Callable[[], Collection[int]]) -> None:
        self._root = folder
        self._checkpoints = checkpoints
        self.best_rounds: Sequence[int] = ()

    def load(self, position: int, round_number: int) -> dict[str, StateDict]:
        """What a client kept of the last round before this one in which it kept anything; empty where there is none.

        Returns:
            Tensors by name, of each part that keeps any.

        Raises:
            ConfigurationError: The file is damaged.
        """
        rounds = [each for each in self._rounds(position) if each < round_number]
        if not rounds:
            return {}
        file = self._file(position, max(rounds))
        parts = load_checkpoint(file).get("kept")
        if not isinstance(parts, dict) or not all(is_model(each) for each in parts.values()):
            raise ConfigurationError(f"{file}: damaged: it holds no tensors by name")
        return parts

    def holders(self, round_number: int) -> list[int]:
        """Positions of the clients that had kept anything by the end of a round, in order."""
        positions = (int(path.name) for path in self._root.glob("*") if path.name.isdigit())
        return sorted(each for each in positions if any(number <= round_number for number in self._rounds(each)))

    def save(self, position: int, round_number: int, parts: Mapping[str, StateDict]) -> None:
        """Keep something of a round, all parts at once, and drop what no checkpoint needs.

        Raises:
            ConfigurationError: It cannot be written.
        """
        file = self._file(position, round_number)
        with told_to_user(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, to_bytes({"kept": dict(parts)}))
        for each in self._superfluous(self._rounds(position)):
            self._file(position, each).unlink(missing_ok=True)

    def forget_after(self, round_number: int) -> None:
        """Forget what clients kept of later rounds, and what a killed process left; all where the round is below 0."""
        if round_number < 0:
            shutil.rmtree(self._root, ignore_errors=True)
        for path in self._root.glob("*/*"):
            name = _NAME.fullmatch(path.name)
            if name is None or int(name[1]) > round_number:
                path.unlink(missing_ok=True)

    def _superfluous(self, rounds: Collection[int]) -> set[int]:
        """Those of the rounds of which nobody will ask again: neither a resumed run nor who wants the best model."""
        saved = self._checkpoints()
        if not saved:
            return set()
        asked = {*saved, *self.best_rounds[-1:]}
        asked |= {max((best for best in self.best_rounds if best <= each), default=each) for each in saved}
        found = {max((each for each in rounds if each <= limit), default=-1) for limit in asked}
        return {each for each in rounds if each <= max(saved) and each not in found}

    def _rounds(self, position: int) -> list[int]:
        folder = self._folder(position)
        names = [_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
        return [int(name[1]) for name in names if name]

    def _folder(self, position: int) -> Path:
        return self._root / str(position)

    def _file(self, position: int, round_number: int) -> Path:
        return self._folder(position) / f"round-{round_number:06d}.state"
