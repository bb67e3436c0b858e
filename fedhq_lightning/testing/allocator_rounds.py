"""An allocator, the run it is told of, and rounds of it."""

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fedhq_lightning.allocation.protocol import AllocationContext, Allocator
from fedhq_lightning.testing.made_rounds import made_context, made_record
from fedhq_lightning.testing.same_values import same_values
from fedhq_lightning.types import ClientId, Plan


class AllocatorRounds:
    """Rounds of a run that never ran, for an allocator that `make` gives.

    Attributes:
        client_ids: The clients of the run that the allocator is told of.
        max_rounds: Rounds of that run, 2 or more.
    """

    client_ids: Sequence[ClientId] = (*range(12), *(f"site-{letter}" for letter in "abcdefgh"))
    max_rounds: int = 12

    def make(self) -> Allocator:
        """A new allocator with the same settings at every call."""
        raise NotImplementedError(f"{type(self).__name__} gives no `make`: it returns a new allocator at every call")

    def context(self, **changes: Any) -> AllocationContext:
        """What the allocator is told of the run; override it for one that needs to know something else."""
        return made_context(self.client_ids, self.max_rounds, **changes)

    def cohort(self, round_number: int) -> list[ClientId]:
        """Three of five clients, others in every round."""
        count = -(-3 * len(self.client_ids) // 5)
        return random.Random(round_number).sample(list(self.client_ids), count)

    def begun(self, **changes: Any) -> Allocator:
        """A new allocator after `begin`."""
        allocator = self.make()
        allocator.begin(self.context(**changes))
        return allocator

    def play(self, allocator: Allocator, rounds: Iterable[int], after: Callable[[], None] = lambda: None) -> list[Plan]:
        """Propose and observe rounds as a trainer does; copies of the plans."""
        plans = []
        for number in rounds:
            plan = allocator.propose(number, self.cohort(number))
            plans.append(copy.deepcopy(plan))
            allocator.observe(made_record(number, plan, self.context()))
            after()
        return plans


def same_plans(left: Sequence[Plan], right: Sequence[Plan]) -> bool:
    """Whether plans are alike: modes, steps, learning rates, reasons and what they log."""
    plans = [
        [(dict(each.modes), each.reason, dict(each.logged), dict(each.work), dict(each.lr_factors)) for each in side]
        for side in (left, right)
    ]
    return same_values(*plans)
