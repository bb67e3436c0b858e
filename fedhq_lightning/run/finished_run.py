"""A finished run read back from its folder, in the shape that pictures and comparisons need."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.run.allocation import Allocation, read_allocation
from fedhq_lightning.run.records import ClientRecord, RoundRecord, read_rounds, tier_figures
from fedhq_lightning.types import MODES, ClientId, Mode


@dataclass
class ClientHistory:
    """One client over the run.

    Attributes:
        client_id: The client.
        tier: Name of its device profile.
        modes: Round -> mode, for the rounds that it took part in.
        left_out: Round -> `late` or `quarantined`, for the rounds in which its update was not used.
        download_seconds: Virtual seconds of all its rounds together.
        compute_seconds: Likewise.
        upload_seconds: Likewise.
        analysis_seconds: Likewise, of what it measured for the allocator.
        uplink_bytes: Bytes that it sent in all its rounds.
    """

    client_id: ClientId
    tier: str
    modes: dict[int, Mode] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    download_seconds: float = 0.0
    compute_seconds: float = 0.0
    upload_seconds: float = 0.0
    analysis_seconds: float = 0.0
    uplink_bytes: int = 0

    def add(self, record: ClientRecord) -> None:
        """Take up one more round."""
        self.modes[record.round] = record.mode
        if record.status != "ok":
            self.left_out[record.round] = record.status
        self.download_seconds += record.download_seconds
        self.compute_seconds += record.compute_seconds
        self.upload_seconds += record.upload_seconds
        self.analysis_seconds += record.analysis_seconds
        self.uplink_bytes += record.uplink_bytes

    @property
    def mean_seconds(self) -> tuple[float, float, float]:
        """Virtual seconds of one local fit: download, compute, upload."""
        count = max(len(self.modes), 1)
        return self.download_seconds / count, self.compute_seconds / count, self.upload_seconds / count

    @property
    def mean_analysis_seconds(self) -> float:
        """Virtual seconds of a round in which it measured for the allocator."""
        return self.analysis_seconds / max(len(self.modes), 1)

    @property
    def mode_counts(self) -> dict[str, int]:
        """Rounds per mode, every mode named."""
        modes = list(self.modes.values())
        return {mode: modes.count(mode) for mode in MODES}


@dataclass(frozen=True)
class RunHistory:
    """What a run's folder tells.

    Attributes:
        name: Name of the folder.
        summary: Content of `summary.json`.
        recipe: Text of `recipe.yaml`, empty where there is none.
        rounds: The rounds in order, without their clients.
        clients: Every client that took part, by tier (slowest first), then by id.
        tiers: See `fedhq_lightning.run.records.tier_figures`.
        allocation: How the allocator allotted clients, None where it left no `allocation.json`.
        allocation_problem: Why that file could not be read, else empty.
    """

    name: str
    summary: Mapping[str, Any]
    recipe: str
    rounds: Sequence[RoundRecord]
    clients: Sequence[ClientHistory]
    tiers: Sequence[Mapping[str, Any]]
    allocation: Allocation | None = None
    allocation_problem: str = ""

    @property
    def metric_name(self) -> str:
        """What was monitored."""
        return str(self.summary.get("metric_name") or "metric")


def load_run(run_dir: Path) -> RunHistory:
    """Read a run's `summary.json`, `rounds.jsonl`, `recipe.yaml` and `allocation.json`.

    Raises:
        ConfigurationError: `summary.json` or `rounds.jsonl` is missing or damaged, or `recipe.yaml` is no text.
    """
    summary = _read_summary(run_dir / "summary.json")
    rounds_path = run_dir / "rounds.jsonl"
    rounds, clients = _split(read_rounds(rounds_path))
    tiers = summary.get("tiers")
    if tiers is None:
        tiers = tier_figures(read_rounds(rounds_path))
    order = {tier["tier"]: position for position, tier in enumerate(tiers)}
    recipe_path = run_dir / "recipe.yaml"
    allocation, problem = None, ""
    try:
        allocation = read_allocation(run_dir)
    except ConfigurationError as error:  # a finished run is worth a report without it
        problem = str(error)
    return RunHistory(
        name=run_dir.resolve().name,
        summary=summary,
        recipe=recipe_files.read(recipe_path) if recipe_path.is_file() else "",
        rounds=rounds,
        clients=sorted(clients, key=lambda client: (order.get(client.tier, len(order)), *_natural(client.client_id))),
        tiers=tiers,
        allocation=allocation,
        allocation_problem=problem,
    )


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file; a run writes it when it ends: resume the run first")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from error
    if not isinstance(summary, dict):
        raise ConfigurationError(f"{path} is damaged: it holds a {type(summary).__name__}, not a mapping")
    for key in ("metric_fp", "metric_quantized"):
        if isinstance(summary.get(key), str):  # not a finite number: strict JSON holds it as text
            summary[key] = float(summary[key])
    return summary


def _split(records: Iterable[RoundRecord]) -> tuple[list[RoundRecord], list[ClientHistory]]:
    """Rounds without their clients, and the clients over the rounds: far smaller than all records together."""
    rounds: list[RoundRecord] = []
    clients: dict[ClientId, ClientHistory] = {}
    for record in records:
        rounds.append(replace(record, clients=()))
        for client in record.clients:
            clients.setdefault(client.client_id, ClientHistory(client.client_id, client.tier)).add(client)
    return rounds, list(clients.values())


def _natural(client_id: ClientId) -> tuple[int, int, str]:
    """Order of ids: numbers by value, then names."""
    return (0, client_id, "") if isinstance(client_id, int) else (1, 0, client_id)
