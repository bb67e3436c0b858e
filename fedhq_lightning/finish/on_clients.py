"""What the deployed model does for clients, on what each of them holds back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.federated.evaluation_round import EvaluationRound
from fedhq_lightning.run.evaluated_clients import UNTRAINED, EvaluatedClient, by_group, metric_of, statistics
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.text import first_line
from fedhq_lightning.types import MODES, MonitorMode

VIEWS = ("fp", "quantized")


def on_clients(
    on_clients: EvaluationRound, state: RunState, monitor: str | None, tiers: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Have the clients evaluate the deployed round's model once more.

    Args:
        on_clients: Has them evaluate.
        state: After the last round.
        monitor: What the run monitors: figures are told of it, or of the first metric that clients log.
        tiers: In the order in which they are told.

    Returns:
        What `summary.json` holds under `on_clients` and under `worst_client`: the client for which the deployed model
        does worst. None of either where no client told anything.
    """
    try:
        found = on_clients.evaluate_own(state.deployed_round, state.deployed, state.last_modes)
    except Exception as error:  # of the user's code: the run is done, and its model is written
        rank_zero_warn(f"summary: nothing is told of clients: {type(error).__name__}: {first_line(error)}")
        return None, None
    logged = list(dict.fromkeys(name.partition("/")[2] for client in found.clients for name in client.metrics))
    if not logged:
        return None, None
    wanted = metric_of(monitor or "")
    metric = wanted if wanted in logged else logged[0]
    direction = on_clients.directions.get(metric)
    of_tier, of_mode = by_group(found.clients, "tier"), by_group(found.clients, "mode")
    order = dict.fromkeys([*(tier["tier"] for tier in tiers), *sorted(of_tier)])
    told = {
        "metric_name": metric,
        "without": found.without,
        **_figures(found.clients, metric, direction),
        "tiers": [{"tier": each} | _figures(of_tier[each], metric, direction) for each in order if each in of_tier],
        "modes": [
            {"mode": each} | _figures(of_mode[each], metric, direction)
            for each in (*MODES, UNTRAINED)
            if each in of_mode
        ],
    }
    return told, _worst(found.clients, metric, direction)


def _figures(clients: Sequence[EvaluatedClient], metric: str, direction: MonitorMode | None) -> dict[str, Any]:
    """How many they are, and statistics of the metric in each view that there is; without those that are no numbers."""
    figures: dict[str, Any] = {"clients": len(clients), "examples": sum(client.num_examples for client in clients)}
    for view in VIEWS:
        found = statistics(clients, f"{view}/{metric}", direction)
        figures[view] = {name: value for name, value in found.items() if math.isfinite(value)} or None
    return figures


def _worst(clients: Sequence[EvaluatedClient], metric: str, direction: MonitorMode | None) -> dict[str, Any] | None:
    if direction is None:
        return None
    views = ("quantized", "fp") if any(f"quantized/{metric}" in client.metrics for client in clients) else ("fp",)
    values = {client.client_id: client.metrics.get(f"{views[0]}/{metric}", math.nan) for client in clients}
    values = {client_id: value for client_id, value in values.items() if math.isfinite(value)}
    if not values:
        return None
    worst = (max if direction == "min" else min)(values, key=values.__getitem__)
    name = f"{metric} on the examples that it holds back"
    return {"client_id": worst, "metric": values[worst], "metric_name": name, "clients_evaluated": len(values)}
