"""Rules whose result is a weighted sum of the updates."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor
from typing_extensions import override

from fedhq_lightning.federated.robust.rule import Cohort, CombineChunk, RobustRule


class WeightedSum(RobustRule):
    """A rule that gives each update a weight, and looks at no coordinate by itself.

    Such a rule needs of all updates only their inner products: distances follow from them, and so do the distances
    between updates and any weighted sum of them.
    """

    @abstractmethod
    def weigh(self, cohort: Cohort) -> Tensor:
        """(num_updates,) float64, what each update counts."""

    @override
    def combine(self, cohort: Cohort) -> CombineChunk:
        weights = self.weigh(cohort)
        return lambda values: weights @ values


def square_distances(products: Tensor) -> Tensor:
    """Squared Euclidean distances from inner products.

    Args:
        products: (n, n) float64, symmetric.

    Returns:
        (n, n) float64, 0 and more.
    """
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)
