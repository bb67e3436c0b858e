"""What earlier runs logged of their trials, for the study of a new run to start with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from fedhq_lightning.allocation.boundary import Boundary
from fedhq_lightning.allocation.study import Trial
from fedhq_lightning.errors import ConfigurationError


def trials_in(rows: Iterable[Mapping[str, float]], origin: str) -> list[Trial]:
    """The judged trials of one run.

    Args:
        rows: What it logged, a row a round: `allocation/trial`, `/slack` and `/share` of the boundary in use, and
            `allocation/judged` and `/objective` where a trial was judged.
        origin: The run's name.

    Returns:
        Finished trials, numbered from 0, with the mean of their objectives; the run's first boundary has 0.

    Raises:
        ConfigurationError: The run logged no boundary.
    """
    boundaries: dict[int, Boundary] = {}
    objectives: dict[int, list[float]] = {}
    names: set[str] = set()
    for row in rows:
        names |= row.keys()
        if "allocation/trial" in row:
            boundary = Boundary(float(row["allocation/slack"]), float(row["allocation/share"]))
            boundaries.setdefault(int(row["allocation/trial"]), boundary)
        if "allocation/judged" in row and math.isfinite(row["allocation/objective"]):
            objectives.setdefault(int(row["allocation/judged"]), []).append(float(row["allocation/objective"]))
    if not boundaries:
        logged = ", ".join(sorted(names)) or "nothing"
        raise ConfigurationError(
            f"warm_start {origin!r}: the run logged no boundary (allocation/trial); it logged {logged}; name a run of "
            "HybridAllocator"
        )
    first = min(boundaries)
    objectives.setdefault(first, [0.0])
    judged = [number for number in boundaries if number in objectives]
    return [
        Trial(position, boundaries[number], fmean(objectives[number]), "COMPLETE", origin)
        for position, number in enumerate(judged)
    ]


def earlier_trials(runs: Sequence[str]) -> list[Trial]:
    """The judged trials of several runs, in the order given.

    Args:
        runs: Run directories, offline W&B runs, or W&B's `entity/project/run`.

    Raises:
        ConfigurationError: One cannot be read, or logged no boundary.
    """
    from fedhq_lightning.run import read_history

    trials = []
    for run in runs:
        history = read_history(run)
        history.check(("allocation/trial", "allocation/slack", "allocation/share"))
        trials += trials_in(history.rows, run)
    return trials
