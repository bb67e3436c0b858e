"""Spearman's rho over several groups, with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

RESAMPLES = 2_000

Vector = NDArray[np.float64]


def vector(values: Sequence[float | None]) -> Vector:
    """(num_clients,) with NaN for what is undefined."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def spearman(x: Vector, y: Vector) -> Vector:
    """Spearman's rho along the last axis.

    Args:
        x: (..., n), finite.
        y: (..., n), finite.

    Returns:
        (...,), NaN where x or y is constant.
    """
    ranks = [rankdata(each, axis=-1) for each in (x, y)]
    a, b = (each - each.mean(-1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        rho: Vector = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return rho


def mean_rho(pairs: Sequence[tuple[Vector, Vector]], resamples: int = RESAMPLES, seed: int = 0) -> Vector:
    """Mean of the groups' rhos with its bootstrap interval.

    Args:
        pairs: What is known and the harm, (num_clients,) each, group by group; clients with a NaN are left out, groups
            without a rho too.
        resamples: Of the clients of each group.
        seed: Of the resampling.

    Returns:
        (3,): mean, lower and upper end of the 95% interval; NaN without a group.
    """
    generator = np.random.default_rng(seed)
    rhos, resampled = [], []
    for x, y in pairs:
        usable = np.isfinite(x) & np.isfinite(y)
        x, y = x[usable], y[usable]
        if len(x) < 2 or np.isnan(rho := spearman(x, y)):
            continue
        rows = generator.integers(len(x), size=(resamples, len(x)))
        rhos.append(float(rho))
        resampled.append(spearman(x[rows], y[rows]))
    if not rhos:
        return np.full(3, np.nan)
    # A sample in which all values are the same has no rho; the mean is then over the other groups.
    held = np.array(resampled)
    counts = np.isfinite(held).sum(0)
    means = np.nansum(held, 0)[counts > 0] / counts[counts > 0]
    return np.array([np.mean(rhos), *np.quantile(means, [0.025, 0.975])])


def shown(rho: Vector) -> str:
    """Mean with its interval, or a dash."""
    return "-" if np.isnan(rho[0]) else f"{rho[0]:+.2f} [{rho[1]:+.2f}, {rho[2]:+.2f}]"
