"""Several finished runs side by side: whether they can be, what they reached when, and where their recipes differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.finished_run import RunHistory
from fedhq_lightning.run.records import RoundRecord

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LONGEST_LABEL = 26
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        letter: What the page calls it.
        run: What its folder tells.
        name: What tells it from the others: its recipe, or its folder where recipes are alike.
    """

    letter: str
    run: RunHistory
    name: str

    @property
    def recipe_name(self) -> str:
        """The recipe that it ran."""
        return str(self.run.summary.get("recipe") or "run")

    @property
    def label(self) -> str:
        """Letter and name, cut to what a legend holds."""
        short = self.name[: _LONGEST_LABEL - 1]
        return f"{self.letter}: {self.name if len(self.name) <= _LONGEST_LABEL else short + ELLIPSIS}"

    @property
    def evaluated(self) -> list[RoundRecord]:
        """Its evaluated rounds, in order."""
        return [record for record in self.run.rounds if record.monitored is not None]

    @property
    def final(self) -> float | None:
        """The monitored value of the round that it deployed, None where there is no finite one."""
        best = self.run.summary.get("best_round")
        found = next((record.monitored for record in self.evaluated if record.round == best), None)
        return found if found is not None and math.isfinite(found) else None

    def first_to_reach(self, target: float, larger_is_better: bool) -> RoundRecord | None:
        """The first round that is as good as `target`."""
        for record in self.evaluated:
            value = record.monitored
            if value is not None and (value >= target if larger_is_better else value <= target):
                return record
        return None


@dataclass(frozen=True)
class Comparison:
    """Runs of one metric.

    Attributes:
        runs: Two or more.
        metric_name: What they all monitor.
        direction: Whether more or less of it is better; None where the runs do not tell.
    """

    runs: Sequence[ComparedRun]
    metric_name: str
    direction: Literal["max", "min"] | None

    @property
    def target(self) -> float | None:
        """The worst of the runs' finals, which each of them has reached; None where a run has none."""
        finals = [each.final for each in self.runs]
        known = [final for final in finals if final is not None]
        if self.direction is None or len(known) < len(finals):
            return None
        return min(known) if self.direction == "max" else max(known)

    def reached(self, each: ComparedRun) -> RoundRecord | None:
        """When a run was as good as the worst final."""
        return None if self.target is None else each.first_to_reach(self.target, self.direction == "max")

    def differing_keys(self) -> list[tuple[str, list[str]]]:
        """Keys of the recipes that are not the same in all runs, in the recipes' order, with each run's value."""
        flat = [_flat(_parsed(each.run.recipe)) for each in self.runs]
        return _differing(flat)

    def differing_versions(self) -> list[tuple[str, list[str]]]:
        """The same for the packages that the runs ran with."""
        versions = [each.run.summary.get("versions") or {} for each in self.runs]
        return _differing([{str(name): str(version) for name, version in each.items()} for each in versions])


def compared(runs: Sequence[RunHistory]) -> Comparison:
    """Put finished runs side by side.

    Args:
        runs: Two or more.

    Raises:
        ConfigurationError: They monitor different metrics, or the same metric in different directions.
    """
    names = [(run.name, str(run.summary.get("metric_name"))) for run in runs]
    if len({run.metric_name for run in runs}) > 1:
        raise ConfigurationError(
            f"runs of different metrics cannot be put side by side: {_listed(names)}; give runs of one metric, or "
            "run one of them again with --trainer.monitor=NAME"
        )
    directions = [_direction(run) for run in runs]
    known = {direction for direction in directions if direction is not None}
    if len(known) > 1:
        raise ConfigurationError(
            f"runs that want {runs[0].metric_name} in different directions cannot be put side by side: "
            f"{_listed([(run.name, str(each)) for run, each in zip(runs, directions, strict=True)])}; give runs of one "
            "trainer.monitor_mode"
        )
    recipes = [str(run.summary.get("recipe") or "") for run in runs]
    tell = len(set(recipes)) == len(runs) and all(recipes)
    lettered = [
        ComparedRun(_letter(number), run, recipes[number] if tell else run.name) for number, run in enumerate(runs)
    ]
    return Comparison(lettered, runs[0].metric_name, next(iter(known), None))


def _listed(values: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} has {value}" for name, value in values)


def _letter(number: int) -> str:
    more, last = divmod(number, len(_LETTERS))
    return (_letter(more - 1) if more else "") + _LETTERS[last]


def _direction(run: RunHistory) -> Literal["max", "min"] | None:
    """Which way the run's best round was chosen; None where its values do not tell."""
    rounds = [record for record in run.rounds if record.round > 0 and record.monitored is not None]
    values = [float(record.monitored) for record in rounds if math.isfinite(record.monitored or math.nan)]  # type: ignore[arg-type]  # seen above
    best = next((record.monitored for record in rounds if record.round == run.summary.get("best_round")), None)
    if best is None or not values or min(values) == max(values):
        return None
    if best == max(values):
        return "max"
    return "min" if best == min(values) else None


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> value as text, without the `init_args` that the command line leaves out too."""
    if isinstance(node, Mapping) and node:
        items = [("" if key == "init_args" else str(key), value) for key, value in node.items()]
    elif isinstance(node, list) and node:
        items = [(str(position), value) for position, value in enumerate(node)]
    else:
        return {} if not prefix else {prefix: "null" if node is None else _text(node)}
    flat: dict[str, str] = {}
    for key, value in items:
        flat |= _flat(value, ".".join(part for part in (prefix, key) if part))
    return flat


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _differing(flat: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = [(key, [each.get(key, "-") for each in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
