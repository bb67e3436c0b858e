"""What stands side by side: finished runs, or cells with a run a seed; lines and totals of either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.cells import Cell
from fedhq_lightning.experiments.statistics import value_at
from fedhq_lightning.recipe.identity import differing
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.run import Clock, Run, curve
from fedhq_lightning.types import MODES

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LONGEST_LABEL = 26
_STEPS = 90
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"

Points = tuple[Sequence[float], Sequence[float]]
"""Positions, and a value at each."""


@dataclass(frozen=True)
class Line:
    """What one of them reached over a clock.

    Attributes:
        label: Its name in the legend.
        quantized: Metric of the deployed model.
        fp: That of the global model; none where it is not shown.
        is_mean: Whether it is a mean, which holds until the next position; else evaluations, each a point.
        band: Least and largest of several runs at the positions of `quantized`, None without several.
        num_evaluations: Behind a mean; None for as many as there are positions.
    """

    label: str
    quantized: Points
    fp: Points = ((), ())
    is_mean: bool = False
    band: tuple[Sequence[float], Sequence[float]] | None = None
    num_evaluations: int | None = None

    @property
    def end(self) -> float:
        """The last position."""
        return max((x for points in (self.quantized, self.fp) for x in points[0]), default=0.0)

    def without_fp(self) -> Line:
        """The same without fp, unless there is nothing else."""
        return replace(self, fp=((), ())) if self.quantized[0] else self

    def scaled(self, size: float) -> Line:
        """The same with positions in units of so many seconds."""
        quantized, fp = (([x / size for x in xs], ys) for xs, ys in (self.quantized, self.fp))
        return replace(self, quantized=quantized, fp=fp)


@dataclass(frozen=True)
class Entry:
    """One of those that stand side by side.

    Attributes:
        label: Its name in legends and tables.
        short: Its name where room is scarce.
        columns: `Run.columns` of each of its runs.
        summaries: `summary.json` of each, the better part at least.
        over_seeds: Whether it is cells of several seeds, to be shown by means; else it is one run, as it was.
    """

    label: str
    short: str
    columns: Sequence[Mapping[str, Sequence[Any]]]
    summaries: Sequence[Mapping[str, Any]]
    over_seeds: bool = False

    def line(self, clock: Clock) -> Line:
        """Its line over a clock: of one run every evaluation, of several the mean over the seeds."""
        if not self.over_seeds:
            [columns] = self.columns
            return Line(self.label, curve(columns, clock), curve(columns, clock, "metric_fp"))
        curves = [curve(columns, clock) for columns in self.columns]
        last = "round" if clock == "round" else f"total_{clock}_seconds"
        end = min(float(columns[last][-1]) for columns in self.columns)
        times = [end * step / _STEPS for step in range(_STEPS + 1)]
        if clock == "round":
            times = [float(number) for number in range(round(end) + 1)]
        values = [[value_at(*each, time) for each in curves] for time in times]
        band = ([min(each) for each in values], [max(each) for each in values]) if len(curves) > 1 else None
        evaluations = max(len(each[0]) for each in curves)
        means = times, [fmean(each) for each in values]
        return Line(self.label, means, is_mean=True, band=band, num_evaluations=evaluations)

    def total(self, name: str) -> float:
        """A number of the summaries; the mean over the seeds."""
        return fmean(float(each.get(name) or 0) for each in self.summaries)

    @property
    def mode_counts(self) -> dict[str, int]:
        """Local fits in each mode; the mean over the seeds."""
        return {mode: round(fmean(sum(columns[mode]) for columns in self.columns)) for mode in MODES}


@dataclass(frozen=True)
class LetteredRun:
    """One of several runs.

    Attributes:
        letter: What the page calls it.
        run: What its folder tells.
        name: What tells it from the others: as the user has called it, its recipe, or its folder where these are alike.
    """

    letter: str
    run: Run
    name: str

    @property
    def label(self) -> str:
        """Letter and name, cut to what a legend holds."""
        short = self.name[: _LONGEST_LABEL - 1]
        return f"{self.letter}: {self.name if len(self.name) <= _LONGEST_LABEL else short + ELLIPSIS}"


@dataclass(frozen=True)
class RunsSideBySide:
    """Runs of one metric.

    Attributes:
        runs: Two or more.
        metric_name: What they all monitor.
        direction: Whether more or less of it is better; None where the runs do not tell.
    """

    runs: Sequence[LetteredRun]
    metric_name: str
    direction: Literal["max", "min"] | None

    @property
    def target(self) -> float | None:
        """The worst of the runs' finals, which each of them has reached; None where a run has none."""
        finals = [each.run.final for each in self.runs]
        known = [final for final in finals if final is not None]
        if self.direction is None or len(known) < len(finals):
            return None
        return min(known) if self.direction == "max" else max(known)

    def reached(self, each: LetteredRun) -> RoundRecord | None:
        """When a run was as good as the worst final."""
        return None if self.target is None else each.run.first_to_reach(self.target, self.direction == "max")

    def differing_keys(self) -> list[tuple[str, list[str]]]:
        """Keys of the recipes that are not the same in all runs, in the recipes' order, with each run's value."""
        return differing([each.run.settings for each in self.runs])

    def entries(self) -> list[Entry]:
        """For the sections that both pages have."""
        return [Entry(each.label, each.letter, [each.run.columns()], [each.run.summary]) for each in self.runs]


def runs_side_by_side(runs: Sequence[Run]) -> RunsSideBySide:
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
    directions = [run.direction for run in runs]
    known = {direction for direction in directions if direction is not None}
    if len(known) > 1:
        raise ConfigurationError(
            f"runs that want {runs[0].metric_name} in different directions cannot be put side by side: "
            f"{_listed([(run.name, str(each)) for run, each in zip(runs, directions, strict=True)])}; give runs of one "
            "trainer.monitor_mode"
        )
    called = [run.given_name or run.recipe_name for run in runs]
    if len(set(called)) < len(runs) or not all(called):
        called = [run.name for run in runs]
    lettered = [LetteredRun(_letter(number), run, called[number]) for number, run in enumerate(runs)]
    return RunsSideBySide(lettered, runs[0].metric_name, next(iter(known), None))


def cells_by_name(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each name, one a seed, in the order in which they come."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.name, []).append(cell)
    return groups


def what_is_compared(cells: Sequence[Cell]) -> str:
    """What the names of a comparison's cells are of: of allocators, or of settings where keys are varied."""
    return "setting" if any(cell.setting for cell in cells) else "allocator"


def quantized_name(cells: Sequence[Cell]) -> str:
    """What the metric of the deployed models is called."""
    has_scheme = any(cell.summary.get("scheme", "") is not None for cell in cells)
    return f"quantized {cells[0].metric_name}" if has_scheme else cells[0].metric_name


def entries_of(cells: Sequence[Cell]) -> list[Entry]:
    """An entry for each name."""
    return [
        Entry(name, name, [cell.rounds for cell in group], [cell.summary for cell in group], over_seeds=True)
        for name, group in cells_by_name(cells).items()
    ]


def _listed(values: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} has {value}" for name, value in values)


def _letter(number: int) -> str:
    more, last = divmod(number, len(_LETTERS))
    return (_letter(more - 1) if more else "") + _LETTERS[last]
