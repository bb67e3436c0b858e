"""From cells to what is compared: one outcome a cell, one row for all of its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fedhq_lightning.experiments.cells import Cell, name_of
from fedhq_lightning.experiments.statistics import (
    Difference,
    Duration,
    Ratio,
    Spread,
    final_mean,
    paired_difference,
    paired_ratio,
    time_to,
    value_at,
)
from fedhq_lightning.run.summary_form import monitored_on_test_data
from fedhq_lightning.types import MODES

POINT = 0.005
"""Half a point of a metric from 0 to 1: how far below its model the default target lies."""
TARGET_FROM = ("all-qat-fake", "all-qat")
"""Whose final metric sets the default target: what users have today, else QAT on integers."""
_BASELINES = ("all-ptq", "all-qat-fake", "all-qat")


@dataclass(frozen=True)
class Outcome:
    """What one cell came to.

    Attributes:
        allocator: Its name; empty for the recipe's own.
        setting: What the varied keys hold; empty where none is varied.
        seed: Of the run.
        at_seconds: Virtual seconds at which the cells of this seed are compared.
        metric_at: Quantized metric at that time, a mean over three evaluations.
        metric: Quantized metric at the end, likewise.
        metric_fp: Metric of the global model before it is quantized, at the end, likewise.
        target: What is to be reached; None where there is no target.
        virtual_to_target: Virtual seconds until it was; None without a target.
        wall_to_target: Wall seconds on the host that ran the cell.
        virtual_seconds: Of the whole run.
        wall_seconds: Likewise.
        uplink_bytes: Likewise.
        downlink_bytes: Likewise.
        qat_share: Share of the local fits that trained in qat.
        deployed_on: What `deployed` is: the monitored metric's name on the test data, or on the validation data where
            not every cell that is compared has it on test data.
        deployed: It, of the deployed model: of the round that validation chose.
        deployed_fp: The same of its float32 original.
        validated: What chose it: the quantized metric of that round.
    """

    allocator: str
    setting: str
    seed: int
    at_seconds: float
    metric_at: float
    metric: float
    metric_fp: float
    target: float | None
    virtual_to_target: Duration | None
    wall_to_target: Duration | None
    virtual_seconds: float
    wall_seconds: float
    uplink_bytes: int
    downlink_bytes: int
    qat_share: float
    deployed_on: str
    deployed: float
    deployed_fp: float
    validated: float

    @property
    def name(self) -> str:
        """What it is called beside the others of its seed."""
        return name_of(self.allocator, self.setting)


def outcomes(
    cells: Sequence[Cell], at: float | None = None, target: float | None = None, point: float = POINT
) -> list[Outcome]:
    """What each cell came to.

    Args:
        cells: Of one comparison.
        at: Virtual seconds at which the metric is read; None for the shortest run of the same seed, whoever's it was.
        target: Quantized metric to reach; None for what all-QAT (`fake`, else as the recipe has it) of the same seed
            had at its end, less `point`; where keys are varied without them, what the first of all had.
        point: How much less.
    """
    by_seed: dict[int, list[Cell]] = {}
    for cell in cells:
        by_seed.setdefault(cell.seed, []).append(cell)
    source = target_from(cells)
    on_test = all(map(_on_test, cells))  # cells of before have no test data; the two are not compared
    found = {}
    for seed, members in by_seed.items():
        shortest = min(float(cell.summary["virtual_seconds"]) for cell in members)
        to_reach = _target(members, source, point) if target is None else target
        for cell in members:
            found[cell.name, seed] = _outcome(cell, shortest if at is None else at, to_reach, on_test)
    return [found[cell.name, cell.seed] for cell in cells]


def target_from(cells: Sequence[Cell]) -> str | None:
    """Whose final metric sets the default target; None where nobody's does.

    Args:
        cells: Of one comparison, in its order.
    """
    found = next((cell for name in TARGET_FROM for cell in cells if cell.allocator == name), None)
    if found is None and cells[0].setting:
        found = cells[0]
    return found.name if found else None


def _target(cells: Sequence[Cell], name: str | None, point: float) -> float | None:
    cell = next((cell for cell in cells if cell.name == name), None)
    if cell is None:
        return None
    final = final_mean(cell.curve("virtual")[1][1:])
    return final - point if cell.larger_is_better else final + point


def _outcome(cell: Cell, at: float, target: float | None, on_test: bool) -> Outcome:
    virtual, values = cell.curve("virtual")
    wall, _ = cell.curve("wall")
    fits = {mode: sum(cell.rounds[mode]) for mode in MODES}
    fp = [float(each) for each in cell.rounds["metric_fp"][1:] if each is not None]

    def reached(times: list[float]) -> Duration | None:
        return None if target is None else time_to(times[1:], values[1:], target, cell.larger_is_better)

    return Outcome(
        cell.allocator,
        cell.setting,
        cell.seed,
        at,
        value_at(virtual, values, at),
        final_mean(values[1:]),
        final_mean(fp),
        target,
        reached(virtual),
        reached(wall),
        float(cell.summary["virtual_seconds"]),
        float(cell.summary["wall_seconds"]),
        int(cell.summary["uplink_bytes"]),
        int(cell.summary["downlink_bytes"]),
        fits["qat"] / max(1, sum(fits.values())),
        *_deployed(cell, on_test),
        _number(cell.summary.get("metric_quantized")),
    )


def _on_test(cell: Cell) -> tuple[str, float | None, float | None] | None:
    return monitored_on_test_data({"metric_name": cell.metric_name, **cell.summary})


def _deployed(cell: Cell, on_test: bool) -> tuple[str, float, float]:
    """Name, and value of the quantized and of the float32 model."""
    found = _on_test(cell) if on_test else None
    if found is not None:
        name, fp, quantized = found
        return name, _number(fp if cell.summary.get("scheme", "") is None else quantized), _number(fp)
    return cell.metric_name, _number(cell.summary.get("metric_quantized")), _number(cell.summary.get("metric_fp"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Row:
    """Cells of one name over their seeds, and against the baseline over the seeds that both have.

    Attributes:
        name: Of the allocator, of what the varied keys hold, or of both.
        seeds: The seeds.
        metric_at: At equal virtual time.
        metric: At the end.
        virtual_to_target: None without a target.
        wall_to_target: Likewise.
        virtual_seconds: Of the whole run.
        wall_seconds: Likewise.
        uplink_bytes: Likewise.
        qat_share: Share of local fits in qat.
        metric_at_difference: This one's minus the baseline's at equal virtual time.
        metric_difference: Likewise at the end.
        deployed: Of the deployed models.
        deployed_fp: Of their float32 originals.
        deployed_difference: Likewise of the deployed models.
        virtual_ratio: This one's time to the target over the baseline's; None without a target.
        wall_ratio: Likewise.
    """

    name: str
    seeds: Sequence[int]
    metric_at: Spread
    metric: Spread
    virtual_to_target: Spread | None
    wall_to_target: Spread | None
    virtual_seconds: Spread
    wall_seconds: Spread
    uplink_bytes: Spread
    qat_share: Spread
    metric_at_difference: Difference
    metric_difference: Difference
    deployed: Spread
    deployed_fp: Spread
    deployed_difference: Difference
    virtual_ratio: Ratio | None
    wall_ratio: Ratio | None


def default_baseline(names: Sequence[str]) -> str:
    """All-PTQ, or all-QAT, or the first that is compared."""
    return next((name for name in _BASELINES if name in names), names[0])


def rows_of(found: Sequence[Outcome], baseline: str) -> list[Row]:
    """A row for each name, in the order in which they come.

    Args:
        found: What each cell came to.
        baseline: Whom differences and ratios are against.
    """
    by_name: dict[str, dict[int, Outcome]] = {}
    for each in found:
        by_name.setdefault(each.name, {})[each.seed] = each
    return [_row(name, by_seed, by_name.get(baseline, {})) for name, by_seed in by_name.items()]


def _row(name: str, own: dict[int, Outcome], baseline: dict[int, Outcome]) -> Row:
    shared = [seed for seed in own if seed in baseline]

    def spread(value: Callable[[Outcome], float]) -> Spread:
        return Spread.of([value(each) for each in own.values()])

    def difference(value: Callable[[Outcome], float]) -> Difference:
        return paired_difference([value(own[seed]) for seed in shared], [value(baseline[seed]) for seed in shared])

    def durations(of: dict[int, Outcome], seeds: Sequence[int], clock: str) -> list[Duration]:
        found = [of[seed].virtual_to_target if clock == "virtual" else of[seed].wall_to_target for seed in seeds]
        return [each for each in found if each is not None]

    def reached(clock: str) -> Spread | None:
        found = durations(own, list(own), clock)
        return Spread.of_durations(found) if found else None

    def ratio(clock: str) -> Ratio | None:
        both = [seed for seed in shared if own[seed].target is not None and baseline[seed].target is not None]
        return paired_ratio(durations(own, both, clock), durations(baseline, both, clock)) if both else None

    return Row(
        name,
        list(own),
        spread(lambda each: each.metric_at),
        spread(lambda each: each.metric),
        reached("virtual"),
        reached("wall"),
        spread(lambda each: each.virtual_seconds),
        spread(lambda each: each.wall_seconds),
        spread(lambda each: each.uplink_bytes),
        spread(lambda each: each.qat_share),
        difference(lambda each: each.metric_at),
        difference(lambda each: each.metric),
        spread(lambda each: each.deployed),
        spread(lambda each: each.deployed_fp),
        difference(lambda each: each.deployed),
        ratio("virtual"),
        ratio("wall"),
    )


def straggler_bound(cells: Sequence[Cell], against: Sequence[str] = ("all-qat", "all-qat-fake")) -> Spread | None:
    """How much faster than all-QAT any allocation can be in virtual time: the straggler's t_qat over t_ptq.

    A round of all-QAT lasts as long as the largest t_qat of its cohort, one of all-PTQ as long as the largest t_ptq;
    the cohorts are the same. The mean of their ratio over the rounds, for each seed that has both cells; None where no
    seed has.

    Args:
        cells: Of one comparison.
        against: Names of all-QAT; the first that a seed has counts.
    """
    by_name = {(cell.name, cell.seed): cell for cell in cells}
    bounds = []
    for seed in dict.fromkeys(cell.seed for cell in cells):
        ptq = by_name.get(("all-ptq", seed))
        qat = next((by_name[name, seed] for name in against if (name, seed) in by_name), None)
        if ptq and qat:
            pairs = zip(qat.rounds["virtual_seconds"][1:], ptq.rounds["virtual_seconds"][1:], strict=False)
            ratios = [float(slow) / float(fast) for slow, fast in pairs if float(fast) > 0]
            if ratios:
                bounds.append(fmean(ratios))
    return Spread.of(bounds) if bounds else None
