"""The folder that a run leaves behind, and its checkpoints."""

from __future__ import annotations

import csv
import io
import json
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.records import RoundRecord, read_rounds
from fedhq_lightning.files import write_atomically

_CHECKPOINT_NAME = re.compile(r"round-(\d+)\.ckpt")


class RunDirectory:
    """Paths and files of one run: `recipe.yaml`, `rounds.jsonl`, `metrics.csv`, `clients.parquet`, `checkpoints/`.

    `rounds.jsonl` is the run's memory, one line a round; the tables are written from it.

    Args:
        path: An existing run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rounds_file = path / "rounds.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"

    @classmethod
    def create(cls, root: Path, name: str) -> RunDirectory:
        """Make `root/name/TIME-ID` with its folders.

        Raises:
            ConfigurationError: The folder cannot be made.
        """
        path = root / name / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        try:
            path.mkdir(parents=True)
            directory = cls(path)
            directory.checkpoints.mkdir()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigurationError(
                f"the run directory {path} cannot be written ({reason}); set trainer.default_root_dir to a folder "
                "that can"
            ) from error
        return directory

    @classmethod
    def of_checkpoint(cls, ckpt_path: Path) -> tuple[RunDirectory, Path]:
        """The run and the checkpoint that `ckpt_path` names: a run directory (its newest) or a checkpoint file.

        Raises:
            ConfigurationError: Nothing there to resume from.
        """
        if ckpt_path.is_file():
            return cls(ckpt_path.parent.parent), ckpt_path
        directory = cls(ckpt_path)
        saved = directory.saved_checkpoints()
        if not saved:
            found = "it holds no checkpoint yet" if ckpt_path.is_dir() else "there is no such folder"
            raise ConfigurationError(f"{ckpt_path}: nothing to resume from: {found}; give a run directory")
        return directory, saved[-1]

    def saved_checkpoints(self) -> list[Path]:
        """Checkpoints by round, oldest first."""
        found = [path for path in self.checkpoints.glob("round-*.ckpt") if _CHECKPOINT_NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name[6:-5]))

    def save_checkpoint(self, round_number: int, state: dict[str, Any], keep: int) -> None:
        """Write `checkpoints/round-N.ckpt` whole, then drop all but the newest `keep`."""
        write_atomically(self.checkpoints / f"round-{round_number:06d}.ckpt", _to_bytes(state))
        for path in self.saved_checkpoints()[:-keep]:
            path.unlink(missing_ok=True)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write `checkpoints/best.ckpt` whole."""
        write_atomically(self.checkpoints / "best.ckpt", _to_bytes(state))

    def append_round(self, record: RoundRecord) -> None:
        """Add one round to `rounds.jsonl`."""
        with self.rounds_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_json(), allow_nan=False) + "\n")
            file.flush()

    def read_rounds(self) -> list[RoundRecord]:
        """The records of `rounds.jsonl`; none where it is not there yet."""
        return list(read_rounds(self.rounds_file)) if self.rounds_file.exists() else []

    def rewind(self, round_number: int) -> list[RoundRecord]:
        """Forget rounds after `round_number`, which a resumed run will run again; the rounds kept."""
        kept = [record for record in self.read_rounds() if record.round <= round_number]
        lines = [json.dumps(record.to_json(), allow_nan=False) + "\n" for record in kept]
        write_atomically(self.rounds_file, "".join(lines))
        return kept

    def write_metrics(self, records: Sequence[RoundRecord]) -> None:
        """`metrics.csv`: one row a round, without clients."""
        rows = [_flat(record) for record in records]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "metrics.csv", text.getvalue())

    def write_clients(self, records: Sequence[RoundRecord]) -> None:
        """`clients.parquet`: one row per client and round."""
        import pyarrow
        import pyarrow.parquet

        rows = []
        for client in (client for record in records for client in record.clients):
            row = client.to_json()
            metrics = row.pop("metrics")
            row |= {"client_id": str(client.client_id), "virtual_seconds": client.virtual_seconds}
            rows.append(row | {f"metrics/{name}": float(value) for name, value in metrics.items()})
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, buffer)
        write_atomically(self.path / "clients.parquet", buffer.getvalue().to_pybytes())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """`summary.json`."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint; nothing in it is executed.

    Raises:
        ConfigurationError: Not a readable checkpoint.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such checkpoint") from None
    except Exception as error:
        raise ConfigurationError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    return state


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _flat(record: RoundRecord) -> dict[str, Any]:
    row = record.to_json()
    del row["clients"]
    counts, metrics = row.pop("mode_counts"), row.pop("metrics")
    row.update({f"clients/{mode}": count for mode, count in counts.items()}, **metrics)
    return row
