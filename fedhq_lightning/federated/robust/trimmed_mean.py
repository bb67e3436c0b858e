"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from fedhq_lightning.federated.robust.rule import AgainstAttackers, Cohort, CombineChunk
from fedhq_lightning.federated.robust.sorting import sorted_rows


class TrimmedMean(AgainstAttackers):
    """The mean of each coordinate without its largest and its smallest values, as many of each as there are attackers.

    Every update counts alike, whatever its examples.

    Args:
        num_attackers: Hostile updates in a round; fewer than half of them.

    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", Definition 2,
    with beta as a count.
    """

    fewest_formula = "2 * num_attackers + 1"

    @property
    @override
    def min_updates(self) -> int:
        return 2 * self.num_attackers + 1

    @override
    def combine(self, cohort: Cohort) -> CombineChunk:
        def trimmed(values: Tensor) -> Tensor:
            return sorted_rows(values)[self.num_attackers : len(values) - self.num_attackers].mean(0)

        return trimmed
