"""What earlier runs logged of their trials, for a new run to start with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from fedhq_lightning.allocation.boundary import Boundary
from fedhq_lightning.allocation.rounding_cost import RoundingCost
from fedhq_lightning.allocation.study import Trial
from fedhq_lightning.errors import ConfigurationError


class Earlier(NamedTuple):
    """What was learned before.

    Attributes:
        trials: Those that were judged, and each run's first boundary; numbered from 0.
        last: The boundary that the last run ended with.
        rounding_costs: Whether rounding was seen to cost in the last run, while it trained in PTQ.
    """

    trials: list[Trial]
    last: Boundary
    rounding_costs: bool


def learned_by(rows: Iterable[Mapping[str, float]], origin: str, sign: float = 1.0) -> Earlier:
    """What one run learned.

    Args:
        rows: What it logged, a row a round: `allocation/trial`, `/slack` and `/share` of the boundary in use,
            `/incumbent`, and `/judged` and `/objective` where a trial was judged; `metric_fp`, `metric_quantized` and
            `clients/qat`.
        origin: The run's name.
        sign: 1 where a larger metric is better, else -1.

    Returns:
        Trials with their objectives, of which the run's first boundary has 0; the incumbent of the last round; the cost
        of rounding as `RoundingCost` sees it in the rounds in which nobody trained in QAT.

    Raises:
        ConfigurationError: The run logged no boundary.
    """
    boundaries: dict[int, Boundary] = {}
    objectives: dict[int, list[float]] = {}
    names: set[str] = set()
    incumbent = None
    rounding = RoundingCost(sign)
    for row in rows:
        names |= row.keys()
        if row.get("round", 0) > 0 and not row.get("clients/qat"):
            rounding.observe(row.get("metric_fp"), row.get("metric_quantized"))
        if {"allocation/trial", "allocation/slack", "allocation/share"} <= row.keys():
            trial, slack, share = (row[f"allocation/{name}"] for name in ("trial", "slack", "share"))
            boundaries.setdefault(_whole(trial, origin), Boundary(float(slack), float(share)))
            incumbent = _whole(row.get("allocation/incumbent", trial), origin)
        if "allocation/judged" in row and math.isfinite(objective := row.get("allocation/objective", math.nan)):
            objectives.setdefault(_whole(row["allocation/judged"], origin), []).append(float(objective))
    if not boundaries or incumbent is None:
        logged = ", ".join(sorted(names)) or "nothing"
        raise ConfigurationError(
            f"warm_start {origin!r}: the run logged no boundary (allocation/trial); it logged {logged}; name a run of "
            "HybridAllocator"
        )
    first = min(boundaries)
    objectives.setdefault(first, [0.0])
    judged = [number for number in boundaries if number in objectives]
    trials = [
        Trial(position, boundaries[number], fmean(objectives[number]), "COMPLETE", origin)
        for position, number in enumerate(judged)
    ]
    return Earlier(trials, boundaries.get(incumbent, boundaries[first]), rounding.is_seen)


def learned_before(runs: Sequence[str], sign: float = 1.0) -> Earlier:
    """What several runs learned, in the order given.

    A run that began with a boundary that an earlier one had judged has its objectives added to that one's.

    Args:
        runs: Run directories, offline W&B runs, or W&B's `entity/project/run`; one at least.
        sign: 1 where a larger metric is better, else -1.

    Raises:
        ConfigurationError: One cannot be read, or logged no boundary.
    """
    from fedhq_lightning.run import read_history

    trials: list[Trial] = []
    for run in runs:
        history = read_history(run)
        history.check(("allocation/trial", "allocation/slack", "allocation/share"))
        own, last, costs = learned_by(history.rows, run, sign)
        base = value_of(own[0].boundary, trials)
        trials += [
            replace(trial, number=len(trials) + trial.number, value=base + (trial.value or 0.0)) for trial in own
        ]
    return Earlier(trials, last, costs)


def value_of(boundary: Boundary, trials: Sequence[Trial]) -> float:
    """A boundary's last objective among trials, 0 where it has none."""
    return next((each.value or 0.0 for each in reversed(trials) if each.boundary == boundary), 0.0)


def _whole(number: float, origin: str) -> int:
    if not abs(number) < 2**31:
        raise ConfigurationError(f"warm_start {origin!r} is damaged: a trial has the number {number}")
    return int(number)
