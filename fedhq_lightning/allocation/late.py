"""QAT at the end of a run, for everybody, in the time that PTQ would take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedhq_lightning.allocation.boundary import fitting_work, is_number
from fedhq_lightning.allocation.protocol import AllocationContext, Allocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import ClientId, Mode, Plan

FEWEST_ROUNDS = 4
"""Rounds of QAT, where the run has as many."""


class LateQatAllocator(Allocator):
    """PTQ for all, then QAT for all in the last rounds, for slow clients with as many local steps as there is time for.

    A round then lasts no longer than with PTQ. Times are virtual seconds as the hardware analysis predicts them; a
    round deadline ends the wait for the slowest. A client that has no time for one step of QAT, or whose device cannot
    hold it, stays in PTQ.

    Args:
        share: Share of the rounds, at the end, that are trained in QAT, 0 to 1; four rounds at least.
        budget: How much longer than its slowest client in PTQ a round of QAT may last, 0 or more: 0.1 allows a tenth;
            infinity gives everybody all steps.
        lr_factor: Factor on learning rates in these rounds.

    Raises:
        ConfigurationError: A number out of range.
    """

    looks_at_the_slowest = True

    def __init__(self, share: float = 0.2, budget: float = 0.0, lr_factor: float = 1.0) -> None:
        if not is_number(share) or not 0 <= share <= 1:
            raise ConfigurationError(f"LateQatAllocator: share {share!r} must be a number from 0 to 1")
        if not is_number(budget) or not budget >= 0:
            raise ConfigurationError(f"LateQatAllocator: budget {budget!r} must be a number, 0 or more")
        if not is_number(lr_factor) or not 0 < lr_factor < math.inf:
            raise ConfigurationError(f"LateQatAllocator: lr_factor {lr_factor!r} must be a number above 0")
        self.share = share
        self.budget = budget
        self.lr_factor = lr_factor
        self._context: AllocationContext | None = None

    @property
    def num_rounds(self) -> int:
        """Rounds of QAT, once the run is known."""
        rounds = self._begun.max_rounds
        return 0 if self.share == 0 else min(rounds, max(FEWEST_ROUNDS, math.floor(self.share * rounds + 0.5)))

    @property
    def _begun(self) -> AllocationContext:
        if self._context is None:
            raise RuntimeError("LateQatAllocator.propose before begin: the trainer calls begin(context) once")
        return self._context

    def begin(self, context: AllocationContext) -> None:
        """Take in the predicted times."""
        self._context = context

    def propose(self, round_number: int, cohort: Sequence[ClientId]) -> Plan:
        """PTQ, or QAT up to the time that the slowest client of this cohort needs for PTQ."""
        context, first = self._begun, self._begun.max_rounds - self.num_rounds + 1
        if round_number < first:
            return Plan(dict.fromkeys(cohort, "ptq"), f"PTQ for everybody before round {first}")
        seconds = max((context.client_seconds(client_id, "ptq") for client_id in cohort), default=0.0)
        seconds *= 1 + self.budget
        if context.round_deadline is not None:
            seconds = min(seconds, context.round_deadline)
        modes: dict[ClientId, Mode] = dict.fromkeys(cohort, "ptq")
        work: dict[ClientId, float] = {}
        for client_id in cohort:
            share = self._affordable(client_id, seconds)
            if share > 0 and context.fits(client_id, "qat"):
                modes[client_id] = "qat"
                if share < 1:
                    work[client_id] = share
        return Plan(
            modes,
            f"QAT for everybody from round {first}, in {seconds:.3g} virtual seconds a round",
            {"seconds": seconds},
            work,
            {"qat": self.lr_factor, "ptq": self.lr_factor} if self.lr_factor != 1 else {},
        )

    def _affordable(self, client_id: ClientId, seconds: float) -> float:
        """Share of the client's local steps in QAT that end in time; 0 where not one does."""
        context = self._begun
        whole = context.client_seconds(client_id, "qat")
        if whole <= seconds or not context.trains(client_id):
            return 1.0
        fixed = context.link_seconds(client_id) + context.calibration_seconds(client_id, "qat")
        share = fitting_work(whole, fixed, seconds)
        return share if share * context.num_steps(client_id) >= 1 else 0.0
