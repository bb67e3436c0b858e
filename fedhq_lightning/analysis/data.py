"""How far a client's labels are from the mix that the whole federation has."""

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError, nearest

DivergenceMeasure: TypeAlias = Literal["total_variation", "hellinger", "jensen_shannon"]
"""Distances between two distributions; each is 0 where they agree and 1 where they share no class."""


def label_divergence(counts: Tensor, reference: Tensor, measure: DivergenceMeasure = "total_variation") -> float:
    """Distance between a client's label distribution and a reference mix.

    Args:
        counts: (num_classes,) examples per class of the client, >= 0, sum > 0. Any dtype and device.
        reference: (num_classes,) examples per class of everybody (or their shares), likewise.
        measure: `total_variation`: half the sum of absolute differences. `hellinger`: root of half the sum of squared
            differences of roots. `jensen_shannon`: root of the Jensen-Shannon divergence in bits (the distance, as
            `scipy.spatial.distance.jensenshannon` has it).

    Returns:
        A number in [0, 1].

    Raises:
        ConfigurationError: Unknown measure; shapes that differ; a negative or non-finite count; no example at all.

    Example:
        >>> label_divergence(torch.tensor([10, 0]), torch.tensor([50, 50]))
        0.5

    Source: Endres and Schindelin 2003 for the Jensen-Shannon distance; Levin et al., Markov Chains and Mixing Times,
    section 4.1, for total variation.
    """
    p, q = _distribution(counts, "client's"), _distribution(reference, "reference")
    if p.shape != q.shape:
        raise ConfigurationError(f"label counts of {p.numel()} classes against a reference of {q.numel()}")
    if measure == "total_variation":
        distance = 0.5 * (p - q).abs().sum()
    elif measure == "hellinger":
        distance = (0.5 * (p.sqrt() - q.sqrt()).square().sum()).sqrt()
    elif measure == "jensen_shannon":
        mean = 0.5 * (p + q)
        # xlogy(0, 0) is 0: a class that nobody has adds nothing, where p * log(p / mean) would give NaN.
        nats = 0.5 * (torch.xlogy(p, p) + torch.xlogy(q, q)).sum() - torch.xlogy(mean, mean).sum()
        distance = (nats.clamp(min=0.0) / torch.log(torch.tensor(2.0, dtype=torch.float64))).sqrt()
    else:
        allowed = get_args(DivergenceMeasure)
        raise ConfigurationError(
            f"unknown divergence measure {measure!r}; allowed are {', '.join(allowed)}{nearest(str(measure), allowed)}"
        )
    return min(1.0, float(distance))


def _distribution(counts: Tensor, whose: str) -> Tensor:
    """Shares in fp64 on the CPU, so that the answer is the same wherever the counts lie."""
    shares = counts.detach().to(device="cpu", dtype=torch.float64)
    if shares.ndim != 1 or shares.numel() == 0:
        raise ConfigurationError(f"{whose} label counts have shape {tuple(counts.shape)}; expected (num_classes,)")
    if not bool(torch.isfinite(shares).all()) or bool((shares < 0).any()):
        raise ConfigurationError(f"{whose} label counts hold a negative or non-finite number")
    total = shares.sum()
    if total == 0:
        raise ConfigurationError(f"{whose} label counts are all zero; a client without examples has no distribution")
    return shares / total
