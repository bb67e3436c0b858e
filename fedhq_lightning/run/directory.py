"""The folder that a run leaves behind, and its checkpoints."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.run.checkpoint_file import to_bytes
from fedhq_lightning.run.client_store import ClientStore
from fedhq_lightning.run.records import ClientRecord, RoundRecord, read_rounds
from fedhq_lightning.run.run_names import new_folder_name
from fedhq_lightning.support.atomic_files import (
    remove_leftovers,
    sync_folder,
    told_to_user,
    whole_file,
    write_atomically,
)

_CHECKPOINT_NAME = re.compile(r"round-(\d+)\.ckpt")
_ROWS_AT_ONCE = 50_000
INPUTS = "inputs.json"
MOST_INPUT_BYTES = 2**26
"""Of that file: ten thousand columns with a hundred categories of sixty letters each."""
KEPT_CHECKPOINTS = 2
"""Of rounds, beside the best one: the newest, and the one before, should that be damaged."""


class RunDirectory:
    """Paths and files of one run: `recipe.yaml`, `rounds.jsonl`, `metrics.csv`, `clients.parquet`, `checkpoints/`.

    `rounds.jsonl` is the run's memory, one line a round; the tables are written from it.

    Args:
        path: An existing run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.rounds_file = path / "rounds.jsonl"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.model = path / "model"
        self.inputs = path / INPUTS
        self.client_store = ClientStore(path / "client_state", self.checkpoint_rounds)
        self.in_flight = ClientStore(path / "in_flight", self.checkpoint_rounds)
        self.fine_tuned = ClientStore(path / "fine_tuned", lambda: ())

    @classmethod
    def create(cls, root: Path, recipe: str, name: str | None = None) -> RunDirectory:
        """Make `root/recipe/TIME-ID` with its folders, or `root/recipe/TIME-ID-name`.

        Raises:
            ConfigurationError: The folder cannot be made.
        """
        path = root / recipe / new_folder_name(name)
        try:
            path.mkdir(parents=True)
            directory = cls(path)
            directory.checkpoints.mkdir()
            sync_folder(path.parent)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigurationError(
                f"the run directory {path} cannot be written ({reason}); set trainer.default_root_dir to a folder "
                "that can"
            ) from error
        return directory

    @classmethod
    def of_checkpoint(cls, ckpt_path: Path) -> tuple[RunDirectory, Path | None]:
        """The run and the checkpoint that `ckpt_path` names: a run directory (its newest) or a checkpoint file.

        Returns:
            The run, and the checkpoint; None where the run was stopped before its first one.

        Raises:
            ConfigurationError: Nothing there to resume from, or a checkpoint that is in no run directory.
        """
        if ckpt_path.is_file():
            directory = cls(recipe_files.run_of(ckpt_path))
            if not directory.recipe.is_file():
                raise ConfigurationError(
                    f"{ckpt_path}: lies in no run directory, so there is no run to go on with; give trainer.run_dir of "
                    "one; from a checkpoint of Lightning's Trainer begin with Module.load_from_checkpoint(...), and "
                    "call fit without ckpt_path"
                )
            return directory, ckpt_path
        directory = cls(recipe_files.run_of(ckpt_path) if ckpt_path.is_dir() else ckpt_path)
        if not directory.can_go_on():
            found = "there is no such folder or checkpoint; give a run directory"
            if ckpt_path.is_dir():
                found = recipe_files.why_no_run(directory.path)
            raise ConfigurationError(f"{ckpt_path}: nothing to resume from: {found}")
        return directory, next(reversed(directory.saved_checkpoints()), None)

    def can_go_on(self) -> bool:
        """Whether a run has what to go on from: a checkpoint, or the recipe, where it was stopped before one."""
        return self.recipe.is_file() or bool(self.saved_checkpoints())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of this run for the length of the block, also one that is killed in it.

        Raises:
            ConfigurationError: Another process is in it.
        """
        # The recipe, because it is written once: a file that is replaced takes its lock along.
        with told_to_user(self.recipe):
            file = self.recipe.open("r+b")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"{self.path}: this run is going on in another process; let it end, or stop it, first"
                ) from None
            except OSError:
                pass  # a file system without locks
            try:
                yield
            finally:
                # Closing would not be enough while a process that was forked in the block still has the file.
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)

    def remove_if_without_rounds(self) -> None:
        """Leave nothing of a run that failed before it had done anything."""
        if not self.rounds_file.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def saved_checkpoints(self) -> list[Path]:
        """Checkpoints by round, oldest first."""
        found = [path for path in self.checkpoints.glob("round-*.ckpt") if _CHECKPOINT_NAME.fullmatch(path.name)]
        return sorted(found, key=round_of)

    def save_checkpoint(self, round_number: int, state: dict[str, Any], keep: int = KEPT_CHECKPOINTS) -> None:
        """Write `checkpoints/round-N.ckpt` whole, then drop all but the newest `keep`."""
        write_atomically(self.checkpoints / f"round-{round_number:06d}.ckpt", to_bytes(state))
        with told_to_user(self.checkpoints):
            sync_folder(self.checkpoints)  # the new name is on the disk before an old one goes
        for path in self.saved_checkpoints()[:-keep]:
            path.unlink(missing_ok=True)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write `checkpoints/best.ckpt` whole."""
        write_atomically(self.best, to_bytes(state))

    def append_round(self, record: RoundRecord) -> None:
        """Add one round to `rounds.jsonl`; it is on the disk before the checkpoint that counts on it."""
        with told_to_user(self.rounds_file):
            is_first = not self.rounds_file.exists()
            with self.rounds_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record.to_json(), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if is_first:
                sync_folder(self.path)

    def stream_rounds(self) -> Iterator[RoundRecord]:
        """The records of `rounds.jsonl`, one at a time; none where it is not there yet."""
        return read_rounds(self.rounds_file) if self.rounds_file.exists() else iter(())

    def read_rounds(self) -> list[RoundRecord]:
        """The records of `rounds.jsonl`, all at once."""
        return list(self.stream_rounds())

    def rounds_until(self, round_number: int) -> list[RoundRecord]:
        """Rounds 0 to `round_number`, without their clients.

        Raises:
            ConfigurationError: They are not all there, one line each and in order.
        """
        kept = [record.without_clients() for record in islice(self.stream_rounds(), round_number + 1)]
        if [record.round for record in kept] != list(range(round_number + 1)):
            raise ConfigurationError(
                f"{self.rounds_file}: does not hold rounds 0 to {round_number}, which were done at the checkpoint: "
                "lines were lost or changed; put the file back, or start a new run"
            )
        return kept

    def rewind(self, round_number: int, keep: int = KEPT_CHECKPOINTS) -> None:
        """Forget rounds after `round_number`, which a resumed run will run again; `rounds_until` finds those before.

        What a killed process left half written, or had not yet dropped, goes too.

        Args:
            round_number: Of the last round that is kept; -1 for none, where the run begins anew.
            keep: Checkpoints that are kept, the newest.
        """
        with told_to_user(self.path):
            for folder in (self.path, self.checkpoints):
                remove_leftovers(folder)
            for path in self.saved_checkpoints():
                if round_of(path) > round_number:  # newer than those to come, so that these would be dropped
                    path.unlink(missing_ok=True)
            for path in self.saved_checkpoints()[:-keep]:
                path.unlink(missing_ok=True)
            self.client_store.forget_after(round_number)
            self.in_flight.forget_after(round_number)
            self.fine_tuned.forget_after(-1)
            if round_number < 0:
                self.rounds_file.unlink(missing_ok=True)
                return
            with self.rounds_file.open("r+b") as file:
                for _ in range(round_number + 1):
                    file.readline()
                file.truncate(file.tell())

    def rewrite_recipe(self, text: str) -> AbstractContextManager[None]:
        """Replace `recipe.yaml` within `locked`; to be entered, since the file takes its lock along."""
        write_atomically(self.recipe, text)
        return self.locked()

    def write_metrics(self, records: Sequence[RoundRecord]) -> None:
        """`metrics.csv`: one row a round, without clients."""
        rows = [_flat(record) for record in records]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "metrics.csv", text.getvalue())

    def write_clients(self) -> None:
        """`clients.parquet`: one row per client and round of `rounds.jsonl`, which need not fit in memory."""
        import pyarrow
        import pyarrow.parquet

        number = pyarrow.float64()
        types: dict[Any, Any] = {int: pyarrow.int64(), float: number, float | None: number}
        columns = {name: types.get(kind, pyarrow.string()) for name, kind in get_type_hints(ClientRecord).items()}
        del columns["metrics"]
        columns["virtual_seconds"] = number
        for client in self._clients():
            columns |= {f"metrics/{name}": number for name in client.metrics}
        schema, rows = pyarrow.schema(columns), map(_client_row, self._clients())
        with whole_file(self.path / "clients.parquet") as path, pyarrow.parquet.ParquetWriter(path, schema) as writer:
            while part := list(islice(rows, _ROWS_AT_ONCE)):
                writer.write_table(pyarrow.Table.from_pylist(part, schema))

    def checkpoint_rounds(self) -> list[int]:
        """The rounds that the run may go on from."""
        return [round_of(path) for path in self.saved_checkpoints()]

    def _clients(self) -> Iterator[ClientRecord]:
        return (client for record in self.stream_rounds() for client in record.clients)

    def write_inputs(self, told: Mapping[str, Any] | None) -> None:
        """`inputs.json`, what `FederatedDataModule.model_inputs` tells; nothing where that is None."""
        if told is not None:
            write_atomically(self.inputs, json.dumps(told, indent=2, allow_nan=False) + "\n")

    def hand_on_inputs(self) -> None:
        """Put `inputs.json` beside the deployed model, for those who get only that."""
        if self.inputs.exists() and self.model.exists():
            write_atomically(self.model / INPUTS, self.inputs.read_bytes())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """`summary.json`."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def round_of(checkpoint: Path) -> int:
    """The round after which `round-N.ckpt` was written."""
    return int(checkpoint.stem.removeprefix("round-"))


def _client_row(client: ClientRecord) -> dict[str, Any]:
    row = {each.name: getattr(client, each.name) for each in fields(client) if each.name != "metrics"}
    row |= {"client_id": str(client.client_id), "virtual_seconds": client.virtual_seconds}
    return row | {f"metrics/{name}": value for name, value in client.metrics.items()}


def _flat(record: RoundRecord) -> dict[str, Any]:
    row = record.to_json()
    del row["clients"]
    counts, metrics, allocation = row.pop("mode_counts"), row.pop("metrics"), row.pop("allocation")
    evaluation = {name: value for name, value in (row.pop("evaluation") or {}).items() if name != "clients"}
    row.update({f"clients/{mode}": count for mode, count in counts.items()}, **metrics)
    evaluation |= evaluation.pop("group_means", {})
    row.update({f"evaluation/{name}": value for name, value in evaluation.items()})
    row.update({f"allocation/{name}": value for name, value in allocation.items()})
    return row
