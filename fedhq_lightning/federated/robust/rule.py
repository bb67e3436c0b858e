"""What a robust rule is: a way to bring a cohort's updates together when some of them may be hostile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol, TypeAlias

from torch import Tensor

from fedhq_lightning.errors import ConfigurationError

CombineChunk: TypeAlias = Callable[[Tensor], Tensor]
"""From the same coordinates of every update, (num_updates, n) float64, to those of the result, (n,)."""


class Cohort(Protocol):
    """A round's updates as a rule sees them: one in a row, each the difference to what the clients received.

    The order of the rows follows from what they hold, so neither arrival nor processes change it.
    """

    @property
    def num_updates(self) -> int:
        """Rows, 1 or more."""

    @property
    def examples(self) -> Tensor:
        """(num_updates,) float64, the clients' examples."""

    @property
    def products(self) -> Tensor:
        """(num_updates, num_updates) float64, symmetric: inner products of the rows. Takes a pass over all of them."""


class RobustRule(ABC):
    """How the updates of a round come together, in place of their mean weighted by examples.

    A rule is asked apart for each kind of tensors: parameters, buffers, and what travels beside the model. Batch
    statistics may be a thousand times as large as what training moves weights by, so distances over both would be
    theirs alone.

    Attributes:
        fewest_formula: Words for `min_updates`, for messages.
    """

    fewest_formula: ClassVar[str] = "1"

    @property
    def min_updates(self) -> int:
        """How many updates it takes; in a round with fewer the model stays."""
        return 1

    @abstractmethod
    def combine(self, cohort: Cohort) -> CombineChunk:
        """Look at a round's updates as a whole, as far as the rule has to; the rest is done chunk by chunk.

        Args:
            cohort: `min_updates` of them or more.
        """

    def check_cohort(self, cohort_size: int) -> None:
        """Refuse cohorts of which no round could have enough updates.

        Raises:
            ConfigurationError: Fewer clients than `min_updates`.
        """
        if cohort_size < self.min_updates:
            raise ConfigurationError(
                f"{type(self).__name__} takes {self.fewest_formula} = {self.min_updates} updates or more, and a cohort "
                f"has {cohort_size} clients; raise clients_per_round, or lower what the rule is to withstand"
            )


class AgainstAttackers(RobustRule):
    """A rule that is told how many of a round's updates may be hostile.

    Args:
        num_attackers: 0 or more, whatever the number of updates that arrive.

    Raises:
        ConfigurationError: No such number.
    """

    def __init__(self, num_attackers: int) -> None:
        if isinstance(num_attackers, bool) or not isinstance(num_attackers, int) or num_attackers < 0:
            raise ConfigurationError(
                f"{type(self).__name__}: num_attackers {num_attackers!r}: must be a whole number, 0 or more: how many "
                "of a round's updates may be hostile"
            )
        self.num_attackers = num_attackers
