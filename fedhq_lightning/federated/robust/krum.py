"""Krum, and Multi-Krum: the updates that lie closest to their neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.robust.linear import WeightedSum, square_distances
from fedhq_lightning.federated.robust.rule import AgainstAttackers, Cohort


class Krum(AgainstAttackers, WeightedSum):
    """The one update with the smallest sum of squared distances to its `n - num_attackers - 2` nearest of n updates.

    Of two with the same sum the one with the smaller sum over all others counts, then the first. Every update counts
    alike, whatever its examples.

    Args:
        num_attackers: Hostile updates in a round.

    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", section 4.
    """

    fewest_formula = "2 * num_attackers + 3"

    @property
    @override
    def min_updates(self) -> int:
        return 2 * self.num_attackers + 3

    @override
    def weigh(self, cohort: Cohort) -> Tensor:
        chosen = by_score(square_distances(cohort.products), self.num_attackers)
        weights = torch.zeros(cohort.num_updates, dtype=torch.float64)
        weights[chosen[: self._num_chosen(cohort.num_updates)]] = 1.0
        return weights / weights.sum()

    def _num_chosen(self, num_updates: int) -> int:
        return 1


class MultiKrum(Krum):
    """The mean of the updates that Krum would choose first, second and so on.

    Args:
        num_attackers: Hostile updates in a round.
        num_chosen: How many are averaged, 1 or more; None for all but `num_attackers + 2`, the most for which Krum's
            guarantee holds.

    Raises:
        ConfigurationError: A value out of range.

    Source: Blanchard et al. 2017, section 5; the most that may be chosen: El Mhamdi et al. 2018, section 2.
    """

    def __init__(self, num_attackers: int, num_chosen: int | None = None) -> None:
        super().__init__(num_attackers)
        is_count = isinstance(num_chosen, int) and not isinstance(num_chosen, bool) and num_chosen >= 1
        if num_chosen is not None and not is_count:
            raise ConfigurationError(
                f"MultiKrum: num_chosen {num_chosen!r}: must be a whole number, 1 or more, or null for all but "
                "num_attackers + 2"
            )
        self.num_chosen = num_chosen
        if num_chosen is not None and num_chosen > num_attackers + 1:
            self.fewest_formula = "num_chosen + num_attackers + 2"  # type: ignore[misc]  # the class has another

    @property
    @override
    def min_updates(self) -> int:
        return max(super().min_updates, (self.num_chosen or 1) + self.num_attackers + 2)

    @override
    def _num_chosen(self, num_updates: int) -> int:
        return self.num_chosen or num_updates - self.num_attackers - 2


def by_score(distances: Tensor, num_attackers: int) -> list[int]:
    """From the update that Krum chooses to the one that it would choose last.

    Args:
        distances: (n, n), squared.
        num_attackers: `n - num_attackers - 2` others are neighbours, and one at least.
    """
    others = distances.clone().fill_diagonal_(math.inf).sort(1).values[:, : len(distances) - 1]
    nearest = others[:, : max(1, len(distances) - num_attackers - 2)].sum(1).tolist()
    # Each of the two closest is the other's only neighbour, where there is but one.
    total = others.sum(1).tolist()
    return sorted(range(len(distances)), key=lambda number: (nearest[number], total[number]))
