"""The coordinate-wise median."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fedhq_lightning.federated.robust.rule import Cohort, CombineChunk, RobustRule
from fedhq_lightning.federated.robust.sorting import sorted_rows


class CoordinateMedian(RobustRule):
    """The median of each coordinate; of an even number of updates the mean of the two in the middle.

    Every update counts alike, whatever its examples. Holds while fewer than half of the updates are hostile.

    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", Definition 1.
    """

    @override
    def combine(self, cohort: Cohort) -> CombineChunk:
        return median_of_rows


def median_of_rows(values: Tensor) -> Tensor:
    """Median of each column.

    Args:
        values: (n, m) float64, n > 0.

    Returns:
        (m,) float64.
    """
    return middle(sorted_rows(values))


def middle(in_order: Tensor) -> Tensor:
    """Likewise, of columns in ascending order."""
    last = len(in_order) - 1
    return torch.add(in_order[last // 2], in_order[(last + 1) // 2]) / 2
