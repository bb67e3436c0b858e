"""A cell: one allocator with one seed, kept as a small JSON file when its run has ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.records import RoundRecord, read_rounds
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.types import MODES

FORMAT_VERSION = 1
_SUMMARY = (
    *("rounds", "best_round", "metric_fp", "metric_quantized", "scheme", "wall_seconds", "fit_wall_seconds"),
    *("virtual_seconds", "allocator_seconds", "uplink_bytes", "downlink_bytes", "mode_counts", "quarantined", "late"),
    *("compiled_kernels", "versions"),
)


@dataclass(frozen=True)
class Cell:
    """What a comparison keeps of one run.

    Attributes:
        allocator: Name of the allocator.
        seed: Of the run.
        fingerprint: Of everything that decides the run.
        described: What the allocator was made with.
        metric_name: What is monitored.
        larger_is_better: Whether more of it is better.
        summary: The better part of the run's `summary.json`.
        rounds: Columns, one value a round from round 0 on, which is the evaluation before training: `round`,
            `metric_quantized` and `metric_fp` (None where the round was not evaluated), `virtual_seconds` (of the
            round), `total_virtual_seconds`, `total_wall_seconds`, `fit_wall_seconds` (of the round), `uplink_bytes`,
            `downlink_bytes`, and `fp`, `ptq`, `qat`, the clients in each mode; and what the allocator logged.
        tiers: Names of the device tiers.
        clients: Per round from 1, `[client_id, position in tiers, mode]` of each client; random allocators are matched
            to them.
    """

    allocator: str
    seed: int
    fingerprint: str
    described: Mapping[str, Any]
    metric_name: str
    larger_is_better: bool
    summary: Mapping[str, Any]
    rounds: Mapping[str, Sequence[Any]]
    tiers: Sequence[str]
    clients: Sequence[Sequence[Any]]

    @cached_property
    def evaluated(self) -> list[int]:
        """Positions in `rounds` of those that evaluated the deployed model, round 0 among them."""
        return [at for at, value in enumerate(self.rounds["metric_quantized"]) if value is not None]

    def curve(self, clock: str) -> tuple[list[float], list[float]]:
        """When each evaluation was there, and its quantized metric; round 0 first.

        Args:
            clock: "virtual" or "wall".
        """
        seconds, values = self.rounds[f"total_{clock}_seconds"], self.rounds["metric_quantized"]
        return [float(seconds[at]) for at in self.evaluated], [float(values[at]) for at in self.evaluated]


def cell_path(folder: Path, allocator: str, seed: int) -> Path:
    """Where a cell is kept."""
    return folder / f"{allocator.replace(':', '-')}-seed-{seed}.json"


def cell_of_run(
    run_dir: Path,
    summary: Mapping[str, Any],
    allocator: str,
    seed: int,
    fingerprint: str,
    described: Mapping[str, Any],
    larger_is_better: bool,
) -> Cell:
    """What is kept of a finished run.

    Args:
        run_dir: Its directory.
        summary: Its `summary.json`.
        allocator: As in `Cell`, like the following.
        seed: See there.
        fingerprint: See there.
        described: See there.
        larger_is_better: See there.

    Raises:
        ConfigurationError: The deployed model was never evaluated.
    """
    tiers: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    clients: list[list[list[Any]]] = []
    for record in read_rounds(run_dir / "rounds.jsonl"):
        rows.append(_row(record))
        if record.round > 0:
            members = [(each.client_id, tiers.setdefault(each.tier, len(tiers)), each.mode) for each in record.clients]
            clients.append([list(member) for member in members])
    if not any(row["metric_quantized"] is not None for row in rows[1:]):
        raise ConfigurationError(
            f"{allocator}, seed {seed}: the deployed model was not evaluated, so nothing can be compared; the module "
            "needs a validation_step that logs a metric, and the data held-out examples"
        )
    names = dict.fromkeys(name for row in rows for name in row)
    return Cell(
        allocator,
        seed,
        fingerprint,
        described,
        str(summary["metric_name"]),
        larger_is_better,
        {name: summary[name] for name in _SUMMARY},
        {name: [row.get(name) for row in rows] for name in names},
        list(tiers),
        clients,
    )


def _row(record: RoundRecord) -> dict[str, Any]:
    names = (
        *("round", "metric_quantized", "metric_fp", "virtual_seconds", "total_virtual_seconds", "total_wall_seconds"),
        *("fit_wall_seconds", "uplink_bytes", "downlink_bytes"),
    )
    encoded = record.to_json()
    return (
        {name: encoded[name] for name in names}
        | {mode: record.mode_counts.get(mode, 0) for mode in MODES}
        | {f"allocation/{name}": float(f"{value:.6g}") for name, value in record.allocation.items()}
    )


def write_cell(cell: Cell, path: Path) -> None:
    """Write a cell, one key a line.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    content = {"format_version": FORMAT_VERSION, **asdict(cell)}
    lines = [f"{json.dumps(key)}: {_dumped(value)}" for key, value in content.items()]
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _dumped(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def read_cell(path: Path) -> Cell:
    """A cell that was kept.

    Raises:
        ConfigurationError: The file is damaged, or of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version")
        if version == FORMAT_VERSION:
            names = [field.name for field in fields(Cell)]
            return Cell(**{name: content[name] for name in names})
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigurationError(f"{path} is damaged: {error!r}; remove it to run the cell again") from error
    raise ConfigurationError(
        f"{path} has format {version!r}, this version reads {FORMAT_VERSION}; remove it to run the cell again"
    )
