"""An allocator that begins with PTQ for everybody: a variation that benchmarks/allocation.py runs (`--grid late`)."""

from __future__ import annotations

from collections.abc import Sequence

from fedhq_lightning.allocation import AllocationContext, FreeQatAllocator
from fedhq_lightning.types import ClientId, Plan


class LateQat(FreeQatAllocator):
    """PTQ for everybody until a share of the rounds is over; then QAT.

    Args:
        free: QAT only for whom it costs no round time; False: for everybody whose device holds it.
        start: Share of the rounds in PTQ, 0 to 1.
    """

    def __init__(self, free: bool = True, start: float = 0.5) -> None:
        super().__init__()
        self.free = free
        self.start = start

    def begin(self, context: AllocationContext) -> None:
        """Take in predicted times and the number of rounds."""
        super().begin(context)
        self._fits, self._last_round_in_ptq = context.fits, self.start * context.max_rounds

    def propose(self, round_number: int, cohort: Sequence[ClientId]) -> Plan:
        """PTQ at first, then the rule."""
        if round_number <= self._last_round_in_ptq:
            return Plan(dict.fromkeys(cohort, "ptq"), "ptq at first")
        if self.free:
            return super().propose(round_number, cohort)
        return Plan({each: "qat" if self._fits(each, "qat") else "ptq" for each in cohort}, "qat for everybody")
