"""What a boundary costs over some rounds, and whether another one is worth trying at its price."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from fedhq_lightning.allocation.boundary import FREE, Allotment, Boundary, ClientFacts, round_seconds
from fedhq_lightning.types import ClientId

Allot: TypeAlias = Callable[[Boundary, Mapping[ClientId, ClientFacts]], Allotment]
_SAVED_PER_STEP = 2.0
"""Share of the rounds' time that a trial must save for each share of their local steps that it gives up."""


def time_saved(
    challenger: Boundary,
    incumbent: Boundary,
    rounds: Iterable[Mapping[ClientId, ClientFacts]],
    allot: Allot,
    slowdown: float,
    deadline: float | None = None,
    waits: bool = True,
) -> float | None:
    """Share of the time that a boundary saves over another one, below 0 where it takes longer; None: not worth trying.

    It must plan otherwise, and may not make rounds longer than is allowed. If it gives up local steps, it must save
    twice that share of the time: where all clients are alike, shorter rounds would only train less.

    Args:
        challenger: The boundary.
        incumbent: What it would challenge.
        rounds: Facts of each round's clients.
        allot: Plans a round by a boundary.
        slowdown: How much longer than their bottleneck rounds may last.
        deadline: Virtual seconds after which a round ends, or None.
        waits: Whether rounds wait for their slowest client.
    """
    differs = False
    seconds = dict.fromkeys((challenger, incumbent, FREE), 0.0)
    steps = dict.fromkeys((challenger, incumbent, FREE), 0.0)
    for facts in rounds:
        plans = {boundary: allot(boundary, facts) for boundary in seconds}
        differs = differs or plans[challenger][:2] != plans[incumbent][:2]
        for boundary, plan in plans.items():
            seconds[boundary] += round_seconds(facts, plan, deadline, waits)
            steps[boundary] += sum(own.num_steps * plan.work.get(each, 1.0) for each, own in facts.items())
    if not differs or seconds[incumbent] <= 0 or steps[incumbent] <= 0:
        return None
    saved = 1 - seconds[challenger] / seconds[incumbent]
    given_up = 1 - steps[challenger] / steps[incumbent]
    longest = max(seconds[incumbent], seconds[FREE] * (1 + slowdown)) * (1 + 1e-12)
    is_worth_it = seconds[challenger] <= longest and (given_up <= 0 or saved >= _SAVED_PER_STEP * given_up)
    return saved if is_worth_it else None
