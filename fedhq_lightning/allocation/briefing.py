"""The coarse choice in brief, for a terminal; why it is so, `explanation.py` tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fedhq_lightning.allocation.boundary import ClientFacts
from fedhq_lightning.types import ClientId, Mode


@dataclass(frozen=True)
class TierBrief:
    """The clients with one device.

    Attributes:
        tier: Its name.
        clients: How many there are among those looked at.
        ptq_seconds: Median virtual seconds of one of their rounds in PTQ, with all steps.
        qat_seconds: Likewise in QAT.
        in_qat: How many the boundary puts into QAT once that has begun.
    """

    tier: str
    clients: int
    ptq_seconds: float
    qat_seconds: float
    in_qat: int


@dataclass(frozen=True)
class Briefing:
    """What was chosen before round 1.

    Attributes:
        tiers: Slowest first.
        round_seconds: Median virtual seconds that a round takes; where no round waits, those that a client takes.
        begins: When QAT begins, such as `in round 5`.
        in_qat: Share of a round's clients that then train in it, 0 to 1.
        rounds_wait: For their slowest client.
    """

    tiers: Sequence[TierBrief]
    round_seconds: float
    begins: str
    in_qat: float
    rounds_wait: bool = True


def tier_briefs(
    facts: Mapping[ClientId, ClientFacts], tiers: Mapping[ClientId, str], modes: Mapping[ClientId, Mode]
) -> list[TierBrief]:
    """A line a tier, slowest in PTQ first.

    Args:
        facts: Of each client looked at.
        tiers: Its device.
        modes: What the boundary gives it.
    """
    members: dict[str, list[ClientId]] = {}
    for client_id in facts:
        members.setdefault(tiers[client_id], []).append(client_id)
    found = [
        TierBrief(
            name,
            len(own),
            median(facts[each].ptq_seconds for each in own),
            median(facts[each].qat_seconds for each in own),
            sum(modes[each] == "qat" for each in own),
        )
        for name, own in members.items()
    ]
    return sorted(found, key=lambda each: -each.ptq_seconds)


def start_in_brief(rounds_in_ptq: int, waits_for_proof: bool) -> str:
    """When QAT begins, in a few words.

    Args:
        rounds_in_ptq: Rounds before.
        waits_for_proof: Whether it begins only once rounding is seen to cost.
    """
    if waits_for_proof:
        return f"in round {rounds_in_ptq + 1} at the earliest, once rounding is seen to cost accuracy"
    return f"in round {rounds_in_ptq + 1}" if rounds_in_ptq else "at once"
