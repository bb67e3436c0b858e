"""The geometric median."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.robust.linear import WeightedSum
from fedhq_lightning.federated.robust.rule import Cohort


class GeometricMedian(WeightedSum):
    """The point with the smallest sum of distances to the updates, each distance weighted by examples.

    Found by the smoothed Weiszfeld algorithm: from the mean on, every step is the mean weighted by examples over
    distance, a distance below `smoothing` counting as that. Every step is a weighted sum of the updates, and its
    distances to them follow from their inner products, so a step costs nothing that grows with the model. Holds while
    hostile clients have fewer than half of a round's examples.

    Args:
        smoothing: Smallest distance, > 0.
        max_steps: 1 or more.
        tolerance: It has arrived when a step is no longer than this times the harmonic mean of distances, >= 0.

    Raises:
        ConfigurationError: A value out of range.

    Source: Pillutla, Kakade, Harchaoui 2022, "Robust Aggregation for Federated Learning", Algorithm 2.
    """

    def __init__(self, smoothing: float = 1e-6, max_steps: int = 1000, tolerance: float = 1e-9) -> None:
        _check("smoothing", smoothing, _is_number(smoothing) and smoothing > 0, "above 0")
        is_count = isinstance(max_steps, int) and _is_number(max_steps)
        _check("max_steps", max_steps, is_count and max_steps >= 1, "a whole number, 1 or more")
        _check("tolerance", tolerance, _is_number(tolerance) and tolerance >= 0, "0 or more")
        self.smoothing = smoothing
        self.max_steps = max_steps
        self.tolerance = tolerance

    @override
    def weigh(self, cohort: Cohort) -> Tensor:
        products = cohort.products
        share = cohort.examples / cohort.examples.sum()
        weights = share
        for _ in range(self.max_steps):
            along = products @ weights
            distances = (weights @ along - 2 * along + products.diagonal()).clamp(min=0).sqrt()
            pulls = share / distances.clamp(min=self.smoothing)
            before, weights = weights, pulls / pulls.sum()
            way = weights - before
            if float(way @ products @ way) <= (self.tolerance / float(pulls.sum())) ** 2:
                break
        return weights


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(name: str, value: Any, is_right: bool, allowed: str) -> None:
    if not is_right:
        raise ConfigurationError(f"GeometricMedian: {name} {value!r}: must be {allowed}")
