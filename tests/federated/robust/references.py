"""Robust rules as plain as their papers write them, in fp64, over whole updates, one coordinate or pair at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def median(rows: Rows) -> Rows:
    return np.median(rows, axis=0)


def trimmed_mean(rows: Rows, attackers: int) -> Rows:
    return np.array([np.mean(sorted(column)[attackers : len(column) - attackers]) for column in rows.T])


def geometric_median(rows: Rows, examples: Rows, steps: int = 2000) -> Rows:
    """Weiszfeld's iteration on the points themselves."""
    point = np.average(rows, axis=0, weights=examples)
    for _ in range(steps):
        weights = examples / np.maximum(1e-6, np.linalg.norm(rows - point, axis=1))
        point = (weights[:, None] * rows).sum(0) / weights.sum()
    return point


def krum_order(rows: Rows, attackers: int) -> list[int]:
    """From the update that Krum chooses to the one that it would choose last."""
    sums = []
    for number, row in enumerate(rows):
        distances = sorted(float(((row - other) ** 2).sum()) for place, other in enumerate(rows) if place != number)
        sums.append((sum(distances[: max(1, len(rows) - attackers - 2)]), sum(distances)))
    return sorted(range(len(rows)), key=sums.__getitem__)


def krum(rows: Rows, attackers: int, chosen: int = 1) -> Rows:
    return rows[krum_order(rows, attackers)[:chosen]].mean(0)


def bulyan(rows: Rows, attackers: int) -> Rows:
    left, chosen = list(rows), []
    while len(left) > 2 * attackers:
        chosen.append(left.pop(krum_order(np.array(left), attackers)[0]))
    result = []
    for column in np.array(chosen).T:
        middle = np.median(column)
        closest = sorted(column, key=lambda value: abs(value - middle))
        result.append(np.mean(closest[: len(column) - 2 * attackers]))
    return np.array(result)


def norm_clipping(rows: Rows, examples: Rows) -> Rows:
    norms = [float(np.linalg.norm(row)) for row in rows]
    bound = sorted(norms)[(len(norms) - 1) // 2]
    clipped = np.array([row * min(1.0, bound / norm) for row, norm in zip(rows, norms, strict=True)])
    return np.average(clipped, axis=0, weights=examples)
