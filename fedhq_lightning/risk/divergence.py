"""How far a client's labels are from the mix that the whole federation has.

What the server sees. The federation's mix is the sum of all clients' label counts: servers that may see histograms add
them up themselves; others get the sum alone, by a secure aggregation outside this package. The mix goes down to the
clients, and each sends back the one statistic that was chosen: its distance, its coverage or its size. No histogram
of a client is kept here. Where not even that number may leave, `fedhq_lightning.risk.update_sketch` needs no labels.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.types import ClientId

DivergenceMeasure: TypeAlias = Literal["total_variation", "hellinger", "jensen_shannon"]
"""Distances between two distributions; each is 0 where they agree and 1 where they share no class."""

Coverage: TypeAlias = Literal["classes", "mass"]
"""`classes`: share of the federation's classes that a client has. `mass`: share of the federation's examples that are
of those classes."""


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
    p, q = _distributions(counts, reference)
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


def label_coverage(counts: Tensor, reference: Tensor, of: Coverage = "classes") -> float:
    """How much of the federation's labels a client has seen.

    Args:
        counts: (num_classes,) examples per class of the client, as for `label_divergence`.
        reference: (num_classes,) examples per class of everybody, or their shares.
        of: What is counted: classes that anybody has, or the examples that everybody has of them.

    Returns:
        A number in [0, 1]; 1 where the client has every class that anybody has.

    Raises:
        ConfigurationError: As for `label_divergence`; or another `of`.

    Example:
        >>> label_coverage(torch.tensor([10, 0, 0]), torch.tensor([60, 30, 10]), of="mass")
        0.6
    """
    p, q = _distributions(counts, reference)
    if of == "classes":
        return int(((p > 0) & (q > 0)).sum()) / int((q > 0).sum())
    if of == "mass":
        return min(1.0, float(q[p > 0].sum()))
    allowed = get_args(Coverage)
    raise ConfigurationError(f"unknown coverage {of!r}; allowed are {', '.join(allowed)}{nearest(str(of), allowed)}")


class LabelStatistics:
    """One statistic of a client at a time, against the mix of all; the clients' histograms are not kept.

    Args:
        client_ids: Every client with data.
        label_counts: A client's examples per class, (num_classes,), or None where it tells none.
    """

    def __init__(self, client_ids: Sequence[ClientId], label_counts: Callable[[ClientId], Tensor | None]) -> None:
        self._client_ids = client_ids
        self._label_counts = label_counts
        self._mix: Tensor | None = None

    @property
    def mix(self) -> Tensor:
        """(num_classes,) fp64 examples per class of everybody; summed on first use.

        Raises:
            ConfigurationError: A client tells no labels, or another number of classes; it is named.
        """
        if self._mix is None:
            total = self._counts(self._client_ids[0])
            self._check_any(self._client_ids[0], total)
            for client_id in self._client_ids[1:]:
                counts = self._counts(client_id)
                if counts.shape != total.shape:
                    raise ConfigurationError(
                        f"label_counts({client_id!r}) has shape {tuple(counts.shape)}, that of client "
                        f"{self._client_ids[0]!r} {tuple(total.shape)}; count the same classes for every client"
                    )
                self._check_any(client_id, counts)
                total = total + counts
            self._mix = total
        return self._mix

    def divergence(self, client_id: ClientId, measure: DivergenceMeasure = "total_variation") -> float:
        """`label_divergence` of a client from the mix.

        Raises:
            ConfigurationError: The client, which is named, tells no labels or unusable ones; or unknown measure.
        """
        return self._statistic(client_id, lambda counts: label_divergence(counts, self.mix, measure))

    def coverage(self, client_id: ClientId, of: Coverage = "classes") -> float:
        """`label_coverage` of a client.

        Raises:
            ConfigurationError: The client, which is named, tells no labels or unusable ones; or another `of`.
        """
        return self._statistic(client_id, lambda counts: label_coverage(counts, self.mix, of))

    def size(self, client_id: ClientId) -> float:
        """A client's labelled examples over the mean of all clients, > 0; 1 is an average client.

        Raises:
            ConfigurationError: The client, which is named, tells no labels or unusable ones.
        """
        return self._statistic(client_id, lambda counts: float(counts.sum() / self.mix.sum()) * len(self._client_ids))

    def _statistic(self, client_id: ClientId, of: Callable[[Tensor], float]) -> float:
        counts = self._counts(client_id)
        mix = self.mix
        try:
            _distributions(counts, mix)
        except ConfigurationError as error:
            raise ConfigurationError(f"label_counts({client_id!r}): {error}") from error
        return of(counts)

    def _check_any(self, client_id: ClientId, counts: Tensor) -> None:
        if not counts.sum() > 0:
            raise ConfigurationError(
                f"label_counts({client_id!r}): client's label counts are all zero or no numbers, but it holds "
                "examples; count them, or take divergence: updates, which needs no labels"
            )

    def _counts(self, client_id: ClientId) -> Tensor:
        found = self._label_counts(client_id)
        if found is None:
            raise ConfigurationError(
                f"label_counts({client_id!r}) is None: client {client_id!r} tells no labels, and a label measure needs "
                "everybody's; give its counts, or take divergence: updates, which needs no labels"
            )
        return torch.as_tensor(found).detach().to(device="cpu", dtype=torch.float64)


def _distributions(counts: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    p, q = _distribution(counts, "client's"), _distribution(reference, "reference")
    if p.shape != q.shape:
        raise ConfigurationError(f"label counts of {p.numel()} classes against a reference of {q.numel()}")
    return p, q


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
