"""Bulyan: Krum chooses, then a trimmed mean around the median."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fedhq_lightning.federated.robust.coordinate_median import middle
from fedhq_lightning.federated.robust.krum import by_score
from fedhq_lightning.federated.robust.linear import square_distances
from fedhq_lightning.federated.robust.rule import AgainstAttackers, Cohort, CombineChunk
from fedhq_lightning.federated.robust.sorting import sorted_rows


class Bulyan(AgainstAttackers):
    """Means, around the median of each coordinate, over updates that Krum has chosen.

    Of n updates Krum chooses `n - 2 * num_attackers`, one after the other; of each coordinate of these counts the mean
    of the `n - 4 * num_attackers` values closest to their median.

    An update that is close to others in most coordinates may be far away in one; this rule bounds each. Every update
    counts alike, whatever its examples.

    Args:
        num_attackers: Hostile updates in a round.

    Source: El Mhamdi, Guerraoui, Rouault 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium",
    section 4.
    """

    fewest_formula = "4 * num_attackers + 3"

    @property
    @override
    def min_updates(self) -> int:
        return 4 * self.num_attackers + 3

    @override
    def combine(self, cohort: Cohort) -> CombineChunk:
        chosen = chosen_by_krum(square_distances(cohort.products), self.num_attackers)
        num_averaged = len(chosen) - 2 * self.num_attackers
        return lambda values: mean_around_median(values[chosen], num_averaged)


def chosen_by_krum(distances: Tensor, num_attackers: int) -> list[int]:
    """Which updates Krum chooses, each from those that are left.

    Args:
        distances: (n, n), squared.
        num_attackers: `n - 2 * num_attackers` are chosen.
    """
    left = list(range(len(distances)))
    chosen = []
    while len(left) > 2 * num_attackers:
        chosen.append(left.pop(by_score(distances[left][:, left], num_attackers)[0]))
    return sorted(chosen)


def mean_around_median(values: Tensor, num_averaged: int) -> Tensor:
    """Of each column the mean of the values closest to its median.

    Args:
        values: (n, m) float64.
        num_averaged: 1..n; where two sets are as close, the smaller values.

    Returns:
        (m,) float64.
    """
    in_order = sorted_rows(values)
    median = middle(in_order)
    # The closest ones follow each other, so one of a few windows over the columns holds them.
    best = mean = torch.empty(0)
    for start in range(len(values) - num_averaged + 1):
        window = in_order[start : start + num_averaged]
        reach = torch.maximum(median - window[0], window[-1] - median)
        if not start:
            best, mean = reach, window.mean(0)
        else:
            mean = torch.where(reach < best, window.mean(0), mean)
            best = torch.minimum(best, reach)
    return mean
