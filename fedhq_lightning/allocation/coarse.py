"""Coarse-grained global initialization: the boundary before round 1, from both analyses and nothing random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhq_lightning.allocation.boundary import Boundary, ClientFacts, risk_level
from fedhq_lightning.types import ClientId

LATEST_START = 0.5
"""However much rounding destroys, half of the rounds are left for `qat`."""
_START_PER_NOISE = 10.0
_SHARES = tuple(step / 20 for step in range(21))
_MOST_SLACKS = 20
_MOST_LOOKED_AT = 20_000


@dataclass(frozen=True)
class CoarseChoice:
    """A boundary and what it is expected to do.

    Attributes:
        boundary: The choice.
        slowdown: Mean length of the rounds looked at over their length with `qat` where it is free only, minus 1.
        in_qat: Share of the cohorts' clients that trains in `qat`.
        protected: Share of the cohorts' risk that trains in `qat`.
        protected_for_free: The same with `qat` where it is free only.
        seconds: Median time budget T over the rounds looked at, virtual seconds.
        bottleneck: Median over these rounds of what they last at least, virtual seconds.
        greatest_slack: The slack at which time keeps nobody from `qat`; the search of the fine adjustment ends there.
    """

    boundary: Boundary
    slowdown: float
    in_qat: float
    protected: float
    protected_for_free: float
    seconds: float
    bottleneck: float
    greatest_slack: float


def start_of_qat(noise_to_signal: float | None) -> float:
    """Share of the rounds after which `qat` begins: ten times the share of the output's power that rounding destroys.

    Straight-through gradients through a forward pass that is mostly noise lead nowhere: with 2 bits, `qat` from round 1
    is less stable than `ptq`, and ends less accurate. So a 4-bit scheme begins at once and a 2-bit scheme, which
    destroys about a tenth of the power, with a model that `ptq` has half trained.

    Args:
        noise_to_signal: Mean over clients of noise over signal power of the rounded initial model; None where unknown,
            and then `qat` begins at once.

    Source: our own, from seeds 0 to 2 of the small grid of `benchmarks/allocation.py`.
    """
    return 0.0 if noise_to_signal is None else min(max(_START_PER_NOISE * noise_to_signal, 0.0), LATEST_START)


def choose_boundary(
    cohorts: Sequence[Sequence[ClientId]],
    facts: Mapping[ClientId, ClientFacts],
    risks: Sequence[float],
    budget: float,
    deadline: float | None = None,
    given: Boundary | None = None,
) -> CoarseChoice:
    """The boundary that puts the most risk into `qat` among those that slow rounds down by no more than the budget.

    Args:
        cohorts: Clients of the first rounds; of many, only as many rounds as hold 20,000 clients are looked at.
        facts: Of every client in them.
        risks: Of all clients, or of a fair sample of them.
        budget: How much longer than with `qat` where it is free rounds may last: 0.1 is a tenth.
        deadline: Virtual seconds after which a round ends, or None.
        given: Only judge this boundary.

    Returns:
        The choice; of equals the one with the shorter rounds, then with the smaller share and slack.

    Raises:
        ValueError: No cohort, or an empty one.
    """
    if not cohorts or not all(cohorts):
        raise ValueError("choose_boundary needs cohorts with clients")
    rounds = [_Round(cohort, facts, deadline) for cohort in cohorts[: max(1, _MOST_LOOKED_AT // len(cohorts[0]))]]
    free = _judge(rounds, Boundary(0.0, 0.0), risks)
    # Slacks just large enough to let one more client in.
    needed = np.unique(np.concatenate([each.needed_slack for each in rounds]))
    greatest = float(needed[-1])
    if given is not None:
        candidates = [given]
    else:
        picked = needed[np.unique(np.linspace(0, len(needed) - 1, _MOST_SLACKS).round().astype(int))]
        candidates = [Boundary(float(slack), share) for slack in (0.0, *picked) for share in _SHARES]
    judged = [(candidate, *_judge(rounds, candidate, risks)) for candidate in candidates]
    within = [each for each in judged if each[1] <= free[0] * (1 + budget) * (1 + 1e-12)] or judged
    best, seconds, protected, limit, in_qat = max(
        within, key=lambda each: (round(each[2], 12), -round(each[1] / free[0], 12), -each[0].share, -each[0].slack)
    )
    return CoarseChoice(
        boundary=best,
        slowdown=seconds / free[0] - 1,
        in_qat=in_qat,
        protected=protected,
        protected_for_free=free[1],
        seconds=limit,
        bottleneck=float(np.median([each.bottleneck for each in rounds])),
        greatest_slack=greatest,
    )


class _Round:
    """One cohort's facts as arrays, (cohort,) each."""

    def __init__(self, cohort: Sequence[ClientId], facts: Mapping[ClientId, ClientFacts], deadline: float | None):
        own = [facts[client_id] for client_id in cohort]
        self.deadline = np.inf if deadline is None else deadline
        self.ptq = np.array([each.ptq_seconds for each in own])
        self.qat = np.array([each.qat_seconds for each in own])
        self.risk = np.array([each.risk for each in own])
        self.possible = np.array([each.can_qat for each in own]) & (self.qat <= self.deadline)
        least = np.array([each.least_seconds for each in own])
        self.bottleneck = min(float(least.max()), self.deadline)
        late = np.where(self.possible, self.qat, 0.0) / self.bottleneck - 1 if self.bottleneck else np.zeros(len(own))
        # A hair more, or rounding would leave out the client that a slack was made for.
        self.needed_slack = np.where(late > 0, late * (1 + 1e-9), 0.0)

    def in_qat(self, boundary: Boundary, level: float) -> NDArray[np.bool_]:
        return self.possible & ((self.qat <= (1 + boundary.slack) * self.bottleneck) | (self.risk >= level))


def _judge(rounds: Sequence[_Round], boundary: Boundary, risks: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean length of a round, share of risk in qat, the median time budget, and the share of clients in qat."""
    level = risk_level(risks, boundary.share)
    seconds, shares, protected, total = [], [], 0.0, 0.0
    for each in rounds:
        in_qat = each.in_qat(boundary, level)
        seconds.append(min(float(np.where(in_qat, each.qat, each.ptq).max()), each.deadline))
        shares.append(float(in_qat.mean()))
        protected += float(each.risk[in_qat].sum())
        total += float(each.risk.sum())
    budget = (1 + boundary.slack) * float(np.median([each.bottleneck for each in rounds]))
    return float(np.mean(seconds)), protected / total if total else 0.0, budget, float(np.mean(shares))
