"""What clients found when they evaluated a global model on what they hold back, and figures over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedhq_lightning.types import ClientId, Count, Mode, MonitorMode, Seconds

STATISTICS = ("mean", "weighted_mean", "worst_decile", "spread")
"""Over the clients' values of one metric; see `statistics`."""
PREFIX = "clients/"
"""A metric's statistics are `clients/METRIC/STATISTIC`."""
UNTRAINED = "untrained"
"""In place of a mode, of clients that have not trained yet."""
_WORST_SHARE = 10
_KINDS: tuple[Literal["tier", "mode"], ...] = ("tier", "mode")


@dataclass(frozen=True)
class EvaluatedClient:
    """What one client found.

    Attributes:
        client_id: The client.
        tier: Name of its device profile.
        mode: How it trained the last time; None where it has not yet.
        num_examples: Examples that it holds back.
        metrics: What `validation_step` logged on them: `fp/NAME` and `quantized/NAME`.
    """

    client_id: ClientId
    tier: str
    mode: Mode | None
    num_examples: Count
    metrics: dict[str, float]


@dataclass(frozen=True)
class ClientsEvaluation:
    """One evaluation on clients, and what it cost.

    Attributes:
        clients: Those that evaluated, in the order of all clients.
        without: Clients that were drawn and told nothing: they hold nothing back, or their code raised.
        virtual_seconds: Of the slowest: download, the batch statistics of a model of its own, a forward pass over its
            examples in each view, upload.
        uplink_bytes: Metrics sent.
        downlink_bytes: The model, once to every client.
        group_means: Mean of every metric over the clients of each tier and of each mode: `fp/NAME/tier/TIER`,
            `quantized/NAME/mode/MODE` and so on; see `group_means`.
    """

    clients: tuple[EvaluatedClient, ...]
    without: Count = 0
    virtual_seconds: Seconds = 0.0
    uplink_bytes: Count = 0
    downlink_bytes: Count = 0
    group_means: dict[str, float] = field(default_factory=dict)

    def metrics(self, directions: Mapping[str, MonitorMode]) -> dict[str, float]:
        """Statistics of every metric in each view, as `VIEW/clients/METRIC/STATISTIC`.

        Args:
            directions: Of each metric which way it is better; others have no worst decile.
        """
        found = {}
        for name in _names(self.clients):
            view, _, metric = name.partition("/")
            for statistic, value in statistics(self.clients, name, directions.get(metric)).items():
                found[f"{view}/{PREFIX}{metric}/{statistic}"] = value
        return found


def statistics(clients: Sequence[EvaluatedClient], name: str, direction: MonitorMode | None = None) -> dict[str, float]:
    """Figures of one metric over the clients for which it is a finite number; NaN where there are none.

    The metric is each client's own, whatever the module makes of its examples: a mean over them, or an F1 score. Sums
    are exact, so the order of the clients changes no bit.

    Args:
        clients: Those that evaluated.
        name: `fp/METRIC` or `quantized/METRIC`.
        direction: Which way the metric is better; None leaves `worst_decile` out.

    Returns:
        `mean` of the clients' values; `weighted_mean` by the examples that each holds back; `worst_decile`, the mean
        over the worst tenth of the clients, one at least; `spread`, the standard deviation over the clients.
    """
    told = [(client.metrics.get(name, math.nan), client.num_examples) for client in clients]
    told = [(value, weight) for value, weight in told if math.isfinite(value)]
    values, weights = [value for value, _ in told], [weight for _, weight in told]
    mean = _mean(values)
    found = {
        "mean": mean,
        "weighted_mean": _mean(values, weights),
        "spread": math.sqrt(_mean([(value - mean) ** 2 for value in values])),
    }
    if direction is not None:
        worst = sorted(values, reverse=direction == "min")[: math.ceil(len(values) / _WORST_SHARE)]
        found["worst_decile"] = _mean(worst)
    return found


def by_group(clients: Iterable[EvaluatedClient], of: Literal["tier", "mode"]) -> dict[str, list[EvaluatedClient]]:
    """The clients by their tier or their mode, in the order in which each first comes."""
    groups: dict[str, list[EvaluatedClient]] = {}
    for client in clients:
        groups.setdefault(getattr(client, of) or UNTRAINED, []).append(client)
    return groups


def group_means(clients: Sequence[EvaluatedClient]) -> dict[str, float]:
    """What `ClientsEvaluation` holds by this name: means over clients, each of whom counts the same.

    Args:
        clients: Those that evaluated.
    """
    found = {}
    for kind in _KINDS:
        for group, members in sorted(by_group(clients, kind).items()):
            for name in _names(members):
                found[f"{name}/{kind}/{group}"] = statistics(members, name)["mean"]
    return found


def _names(clients: Iterable[EvaluatedClient]) -> list[str]:
    return list(dict.fromkeys(name for client in clients for name in client.metrics))


def metric_of(name: str) -> str:
    """The metric that `clients/METRIC/STATISTIC` is a figure of; of another name, that name itself."""
    metric, _, statistic = name.removeprefix(PREFIX).rpartition("/")
    return metric if name.startswith(PREFIX) and statistic in STATISTICS else name


def _mean(values: Sequence[float], weights: Sequence[int] | None = None) -> float:
    weights = [1] * len(values) if weights is None else weights
    products = (value * weight for value, weight in zip(values, weights, strict=True))
    return math.fsum(products) / sum(weights) if values else math.nan
