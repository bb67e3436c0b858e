"""Coarse-grained global initialization: the boundary before round 1, from both analyses and nothing random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhq_lightning.allocation.boundary import FREE, Boundary, ClientFacts, lasting, least_round_seconds, risk_level
from fedhq_lightning.types import ClientId

LATEST_START = 0.5
"""However much rounding destroys, half of the rounds are left for `qat`."""
UNKNOWN_START = 0.25
_START_PER_NOISE = 10.0
_SHARES = tuple(step / 20 for step in range(21))
_SLACKS = tuple(step / 4 for step in range(5))
"""As shares of the longest that is allowed."""
_MOST_LOOKED_AT = 20_000


@dataclass(frozen=True)
class CoarseChoice:
    """A boundary and what it is expected to do once `qat` has begun.

    Attributes:
        boundary: The choice.
        slowdown: Mean length of the rounds looked at over that of rounds as long as their bottleneck, minus 1.
        in_qat: Share of the cohorts' clients that trains in `qat`.
        work: Share of the cohorts' local steps that is taken.
        protected: Share of the cohorts' risk that trains in `qat`, by the steps that are taken.
        protected_for_free: The same in rounds as long as their bottleneck, nobody exempt.
        seconds: Median T over the rounds looked at, virtual seconds.
        bottleneck: Median over these rounds of what they last at least with all steps, virtual seconds; where no round
            waits, of what their clients take in the mean.
    """

    boundary: Boundary
    slowdown: float
    in_qat: float
    work: float
    protected: float
    protected_for_free: float
    seconds: float
    bottleneck: float


def start_of_qat(noise_to_signal: float | None) -> float:
    """Share of the rounds after which `qat` begins: ten times the share of the output's power that rounding destroys.

    Straight-through gradients through a forward pass that is mostly noise lead nowhere: with 2 bits, `qat` from round 1
    is less stable than `ptq`, and ends less accurate. So a 4-bit scheme begins at once and a 2-bit scheme, which
    destroys about a tenth of the power, with a model that `ptq` has half trained.

    Args:
        noise_to_signal: Mean over clients of noise over signal power of the rounded initial model; None where unknown,
            and then it is a quarter.

    Source: our own, from seeds 0 to 2 of the small grid of `benchmarks/allocation.py`.
    """
    return UNKNOWN_START if noise_to_signal is None else min(max(_START_PER_NOISE * noise_to_signal, 0.0), LATEST_START)


def choose_boundary(
    cohorts: Sequence[Sequence[ClientId]],
    facts: Mapping[ClientId, ClientFacts],
    risks: Sequence[float],
    budget: float,
    least_work: float,
    deadline: float | None = None,
    given: Boundary | None = None,
    waits: bool = True,
) -> CoarseChoice:
    """The boundary that puts the most risk into `qat` among those that slow rounds down by no more than the budget.

    Args:
        cohorts: Clients of the first rounds; of many, only as many rounds as hold 20,000 clients are looked at.
        facts: Of every client in them.
        risks: Of all clients, or of a fair sample of them.
        budget: How much longer than their bottleneck rounds may last: 0.1 is a tenth.
        least_work: See `allot`.
        deadline: Virtual seconds after which a round ends, or None.
        given: Only judge this boundary.
        waits: Whether rounds wait for their slowest client.

    Returns:
        The choice; of equals the one with the shorter rounds, then with the smaller share and slack.

    Raises:
        ValueError: No cohort, or an empty one.
    """
    if not cohorts or not all(cohorts):
        raise ValueError("choose_boundary needs cohorts with clients")
    rounds = [
        _Round(cohort, facts, least_work, deadline, waits)
        for cohort in cohorts[: max(1, _MOST_LOOKED_AT // len(cohorts[0]))]
    ]
    free = _judge(rounds, FREE, risks)
    slacks = sorted({step * budget for step in _SLACKS})
    candidates = [Boundary(slack, share) for slack in slacks for share in _SHARES] if given is None else [given]
    judged = [(candidate, _judge(rounds, candidate, risks)) for candidate in candidates]
    within = [each for each in judged if each[1].seconds <= free.seconds * (1 + budget) * (1 + 1e-12)] or judged
    best, found = max(
        within,
        key=lambda each: (
            round(each[1].protected, 12),
            -round(_relative(each[1].seconds, free.seconds), 12),
            -each[0].share,
            -each[0].slack,
        ),
    )
    bottleneck = float(np.median([each.bottleneck for each in rounds]))
    return CoarseChoice(
        boundary=best,
        slowdown=_relative(found.seconds, free.seconds) - 1,
        in_qat=found.in_qat,
        work=found.work,
        protected=found.protected,
        protected_for_free=free.protected,
        seconds=(1 + best.slack) * bottleneck,
        bottleneck=bottleneck,
    )


def _relative(seconds: float, to: float) -> float:
    """How many times as long; 1 where nothing takes any time."""
    return seconds / to if to > 0 else 1.0


class _Expected(NamedTuple):
    """Means over rounds: seconds, and shares of risk and clients in qat and of steps."""

    seconds: float
    protected: float
    in_qat: float
    work: float


class _Round:
    """One cohort's facts as arrays, (cohort,) each, and what `allot` makes of them."""

    def __init__(
        self,
        cohort: Sequence[ClientId],
        facts: Mapping[ClientId, ClientFacts],
        least_work: float,
        deadline: float | None,
        waits: bool,
    ) -> None:
        own = [facts[client_id] for client_id in cohort]
        self.deadline = np.inf if deadline is None else deadline
        self.least_work = least_work
        self.ptq = np.array([each.ptq_seconds for each in own])
        self.qat = np.array([each.qat_seconds for each in own])
        self.fixed = np.array([each.fixed_seconds for each in own])
        self.risk = np.array([each.risk for each in own])
        self.num_steps = np.array([each.num_steps for each in own], dtype=float)
        self.can_qat = np.array([each.can_qat for each in own])
        self.waits = waits
        self.bottleneck = least_round_seconds(own, deadline, waits)
        self.least = self.bottleneck if waits else np.array([each.least_seconds for each in own])

    def allot(self, boundary: Boundary, level: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Who trains in qat, and the share of steps of each."""
        limit = np.minimum((1 + boundary.slack) * self.least, self.deadline)
        time = np.where(self.risk >= level, self.deadline, limit)
        work = self._fitting(self.qat, time)
        in_qat = self.can_qat & (work >= self.least_work)
        return in_qat, np.where(in_qat, work, np.maximum(self._fitting(self.ptq, time), self.least_work))

    def seconds(self, in_qat: NDArray[np.bool_], work: NDArray[np.float64]) -> float:
        whole = np.where(in_qat, self.qat, self.ptq)
        return lasting((self.fixed + work * (whole - self.fixed)).tolist(), self.deadline, self.waits)

    def _fitting(self, whole: NDArray[np.float64], time: NDArray[np.float64]) -> NDArray[np.float64]:
        saved = np.maximum(whole - self.fixed, np.finfo(float).tiny)
        return np.where(whole <= time, 1.0, np.clip((time - self.fixed) / saved, 0.0, 1.0))


def _judge(rounds: Sequence[_Round], boundary: Boundary, risks: Sequence[float]) -> _Expected:
    level = risk_level(risks, boundary.share)
    seconds, shares, protected, total, steps, all_steps = [], [], 0.0, 0.0, 0.0, 0.0
    for each in rounds:
        in_qat, work = each.allot(boundary, level)
        seconds.append(each.seconds(in_qat, work))
        shares.append(float(in_qat.mean()))
        protected += float((each.risk * work)[in_qat].sum())
        total += float(each.risk.sum())
        steps += float((each.num_steps * work).sum())
        all_steps += float(each.num_steps.sum())
    return _Expected(
        float(np.mean(seconds)), protected / total if total else 0.0, float(np.mean(shares)), steps / all_steps
    )
