"""A small run with all that a run writes, done in a process of its own, which may be killed; and what it left."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from torch import nn

from fedhq_lightning.callbacks import HybridAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.types import StateDict

from ..programs import FORKING
from ..small_federation import SmallData, SmallModule, same_bits, trainer
from ..trainer.conftest import make_quick
from .file_operations import FileOperations

ROUNDS = 3
_WALL = ("wall_seconds", "fit_wall_seconds", "allocator_seconds", "total_wall_seconds")


class NormedModule(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(16))


def in_a_process(root: Path, last: int | None = None, run: Path | None = None, is_quick: bool = True) -> dict[str, Any]:
    """Begin a run below `root`, or go on with one, in a process that ends after its file operation number `last`.

    Returns:
        `ended` (its exit code), `said` (by the error that ended it), `operations` (their names); of a killed one
        nothing but the first.
    """
    process, told = begun(root, last, run, is_quick)
    process.join()
    found: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {}
    return found | {"ended": process.exitcode}


def begun(root: Path, last: int | None = None, run: Path | None = None, is_quick: bool = True) -> tuple[Any, Path]:
    """As `in_a_process`, without waiting for it: the process, and the file that it writes at the end."""
    told = root / "told.json"
    told.unlink(missing_ok=True)
    process = FORKING.Process(target=_run, args=(root, last, run, told, is_quick))
    process.start()
    return process, told


def _run(root: Path, last: int | None, run: Path | None, told: Path, is_quick: bool) -> None:
    import pytest

    torch.set_num_threads(1)
    operations, said = FileOperations(root / "runs", last), ""
    with pytest.MonkeyPatch.context() as patch:
        if is_quick:
            make_quick(patch)
        there = trainer(
            max_rounds=ROUNDS,
            clients_per_round=3,
            scheme="w4a8",
            fleet="mixed",
            ema_decay=0.5,
            callbacks=[HybridAllocator(window=1)],
            default_root_dir=root / "runs",
        )
        operations.watch()
        try:
            there.fit(NormedModule(), SmallData(), run)
        except ConfigurationError as error:
            said = str(error)
    told.write_text(json.dumps({"said": said, "operations": operations.names}))


def run_below(root: Path) -> Path | None:
    """The only run that was begun there."""
    found = list((root / "runs").glob("*/*"))
    assert len(found) <= 1
    return found[0] if found else None


def left_by(run: Path) -> tuple[dict[str, StateDict], list[RoundRecord]]:
    """Models of the last checkpoint, and the records without what was measured in wall seconds."""
    directory = RunDirectory(run)
    state = load_checkpoint(directory.saved_checkpoints()[-1])["state"]
    models = {name: state[name] or {} for name in ("global_state", "averaged_state", "best_state")}
    return models, [timeless(record) for record in directory.read_rounds()]


def check_as_undisturbed(run: Path, undisturbed: Path) -> None:
    """Bits, records and rows are those of the other run, and nothing half written is left."""
    (models, records), (others, their_records) = left_by(run), left_by(undisturbed)
    for name, model in models.items():
        assert same_bits(model, others[name]), name
    for record, other in zip(records, their_records, strict=True):
        assert record.to_json() == other.to_json(), _different(record.to_json(), other.to_json())
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + len(records)
    rows = [pyarrow.parquet.read_table(each / "clients.parquet").num_rows for each in (run, undisturbed)]
    assert rows[0] == rows[1] == sum(len(record.clients) for record in records)
    weights = [(each / "model" / "weights.safetensors").read_bytes() for each in (run, undisturbed)]
    assert weights[0] == weights[1]
    assert _names(run) == _names(undisturbed)


def _different(record: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs, since pytest shortens what two long records are."""
    pairs = [("", record, other), *zip(map(str, range(99)), record["clients"], other["clients"], strict=False)]
    return [
        f"{at}.{name}: {one[name]!r} is not {two[name]!r}"
        for at, one, two in pairs
        for name in one
        if name != "clients" and one[name] != two[name]
    ]


def _names(run: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if "wandb" not in path.parts)


def timeless(record: RoundRecord) -> RoundRecord:
    """Without what was measured in wall seconds."""
    clients = tuple(replace(client, fit_wall_seconds=0.0) for client in record.clients)
    return replace(record, clients=clients, **dict.fromkeys(_WALL, 0.0))
