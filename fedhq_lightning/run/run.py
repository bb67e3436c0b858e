"""A run read back from its folder: the one reader for reports, comparisons, studies and warm starts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.run.allocation import Allocation, read_allocation
from fedhq_lightning.run.client_history import ClientHistory, split
from fedhq_lightning.run.logged_rows import LoggedHistory, logged_values, make_history
from fedhq_lightning.run.records import RoundRecord, read_rounds, tier_figures
from fedhq_lightning.run.run_names import given_name
from fedhq_lightning.run.summary_form import read_summary
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.support.yaml_text import parse_yaml
from fedhq_lightning.types import MODES, ClientId

Clock: TypeAlias = Literal["wall", "virtual", "round"]
"""What a curve is drawn over: seconds measured, seconds modelled, or rounds."""
COLUMNS = (
    *("round", "metric_quantized", "metric_fp", "virtual_seconds", "total_virtual_seconds", "total_wall_seconds"),
    *("fit_wall_seconds", "uplink_bytes", "downlink_bytes"),
)
"""Of `Run.columns`, beside modes and what the allocator logged."""


class Run:
    """What a run's folder tells. A file is read when something of it is first asked for.

    A run that has not ended has no `summary`; its rounds so far are there.

    Args:
        folder: The run's folder.
        summary: What `summary.json` holds, where it is at hand.
    """

    def __init__(self, folder: str | Path, summary: Mapping[str, Any] | None = None) -> None:
        self.folder = expand_path(folder)
        if summary is not None:
            self.summary = summary

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def given_name(self) -> str:
        """As the user has called it, else empty."""
        return given_name(self.folder)

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """Content of `summary.json`.

        Raises:
            ConfigurationError: It is missing or damaged.
        """
        path = self.folder / "summary.json"
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such file; a run writes it when it ends: resume the run first")
        return read_summary(path)

    @cached_property
    def recipe(self) -> str:
        """Text of `recipe.yaml`, empty where there is none.

        Raises:
            ConfigurationError: It is no text.
        """
        path = self.folder / "recipe.yaml"
        return recipe_files.read(path) if path.is_file() else ""

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What `recipe.yaml` sets, empty where there is none.

        Raises:
            ConfigurationError: It is damaged.
        """
        try:
            found = parse_yaml(self.recipe)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.folder / 'recipe.yaml'} is damaged: {error}") from error
        return found if isinstance(found, dict) else {}

    def stream(self) -> Iterator[RoundRecord]:
        """The rounds with their clients, one at a time: all at once they may not fit in memory.

        Raises:
            ConfigurationError: `rounds.jsonl` is missing or damaged, or its rounds are not in order.
        """
        path, before = self.folder / "rounds.jsonl", -1
        for record in read_rounds(path):
            if record.round <= before:
                raise ConfigurationError(f"{path} is damaged: round {record.round} after round {before}")
            if any(client.round != record.round for client in record.clients):
                raise ConfigurationError(f"{path} is damaged: round {record.round} has clients of another one")
            before = record.round
            yield record

    @property
    def rounds(self) -> Sequence[RoundRecord]:
        """The rounds in order, without their clients."""
        return self._rounds_and_clients[0]

    @cached_property
    def clients(self) -> Sequence[ClientHistory]:
        """Every client that took part, by tier (slowest first), then by id."""
        order = {tier["tier"]: position for position, tier in enumerate(self.tiers)}
        return sorted(
            self._rounds_and_clients[1],
            key=lambda client: (order.get(client.tier, len(order)), *_natural(client.client_id)),
        )

    @cached_property
    def tiers(self) -> Sequence[Mapping[str, Any]]:
        """See `fedhq_lightning.run.records.tier_figures`."""
        tiers: Sequence[Mapping[str, Any]] | None = self.summary.get("tiers")
        return tier_figures(self.stream()) if tiers is None else tiers

    @property
    def allocation(self) -> Allocation | None:
        """How the allocator allotted clients, None where it left no `allocation.json` that can be read."""
        return self._allocation_or_problem[0]

    @property
    def allocation_problem(self) -> str:
        """Why that file could not be read, else empty."""
        return self._allocation_or_problem[1]

    @property
    def recipe_name(self) -> str:
        """The recipe that it ran, empty where unknown."""
        return str(self.summary.get("recipe") or "")

    @property
    def metric_name(self) -> str:
        """What was monitored."""
        return str(self.summary.get("metric_name") or "metric")

    @cached_property
    def direction(self) -> Literal["max", "min"] | None:
        """Which way the best round was chosen; None where neither the recipe nor the values tell."""
        trainer = self.settings.get("trainer")
        given = trainer.get("monitor_mode") if isinstance(trainer, Mapping) else None
        if given in ("max", "min"):
            return "max" if given == "max" else "min"
        known = {record.round: record.monitored for record in self.evaluated if record.round > 0}
        values = [value for value in known.values() if value is not None and math.isfinite(value)]
        best = known.get(self.summary.get("best_round"))  # type: ignore[arg-type]  # None is no round
        if best is None or not values or min(values) == max(values):
            return None
        if best == max(values):
            return "max"
        return "min" if best == min(values) else None

    @property
    def evaluated(self) -> list[RoundRecord]:
        """The evaluated rounds, in order."""
        return [record for record in self.rounds if record.monitored is not None]

    @property
    def final(self) -> float | None:
        """The monitored value of the round that was deployed, None where there is no finite one."""
        best = self.summary.get("best_round")
        found = next((record.monitored for record in self.evaluated if record.round == best), None)
        return found if found is not None and math.isfinite(found) else None

    def first_to_reach(self, target: float, larger_is_better: bool) -> RoundRecord | None:
        """The first round that is as good as `target`."""
        for record in self.evaluated:
            value = record.monitored
            if value is not None and (value >= target if larger_is_better else value <= target):
                return record
        return None

    def columns(self) -> dict[str, list[Any]]:
        """The rounds as columns, one value a round from round 0 on, which is the evaluation before training.

        Returns:
            `round`, `metric_quantized` and `metric_fp` (None where the round was not evaluated), `virtual_seconds` (of
            the round), `total_virtual_seconds`, `total_wall_seconds`, `fit_wall_seconds` (of the round),
            `uplink_bytes`, `downlink_bytes`; `fp`, `ptq`, `qat`, the clients in each mode; and under `allocation/...`
            what the allocator logged, None where it did not.
        """
        found = {name: [getattr(record, name) for record in self.rounds] for name in COLUMNS}
        found |= {mode: [record.mode_counts.get(mode, 0) for record in self.rounds] for mode in MODES}
        logged = dict.fromkeys(name for record in self.rounds for name in record.allocation)
        return found | {f"allocation/{name}": [each.allocation.get(name) for each in self.rounds] for name in logged}

    def logged(self) -> LoggedHistory:
        """What trackers got of it, whether or not it has ended.

        Raises:
            ConfigurationError: No round in it, or a file is damaged.
        """
        metric_name = self.summary.get("metric_name") if (self.folder / "summary.json").is_file() else None
        rows = [logged_values(record) for record in self.rounds]
        return make_history(str(self.folder), rows, self.settings, metric_name)

    @cached_property
    def _rounds_and_clients(self) -> tuple[list[RoundRecord], list[ClientHistory]]:
        return split(self.stream())

    @cached_property
    def _allocation_or_problem(self) -> tuple[Allocation | None, str]:
        try:
            return read_allocation(self.folder), ""
        except ConfigurationError as error:  # a finished run is worth a report without it
            return None, str(error)


def curve(
    columns: Mapping[str, Sequence[Any]], clock: Clock, metric: str = "metric_quantized"
) -> tuple[list[float], list[float]]:
    """When each evaluation was there, and what it gave; round 0 first.

    Args:
        columns: As `Run.columns` gives them.
        clock: What is counted.
        metric: Its column.
    """
    when = columns["round" if clock == "round" else f"total_{clock}_seconds"]
    points = [(at, value) for at, value in zip(when, columns[metric], strict=True) if value is not None]
    return [float(at) for at, _ in points], [float(value) for _, value in points]


def _natural(client_id: ClientId) -> tuple[int, int, str]:
    """Order of ids: numbers by value, then names."""
    return (0, client_id, "") if isinstance(client_id, int) else (1, 0, client_id)
