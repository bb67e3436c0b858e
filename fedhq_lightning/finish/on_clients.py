"""What the deployed model does for clients, on what each of them holds back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.federated.evaluation_round import EvaluationRound
from fedhq_lightning.run.evaluated_clients import (
    UNTRAINED,
    ClientsEvaluation,
    EvaluatedClient,
    by_group,
    metric_of,
    statistics,
)
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.text import first_line
from fedhq_lightning.types import MODES, Mode, MonitorMode

VIEWS = ("fp", "quantized")


def on_clients(on_clients: EvaluationRound, state: RunState, modes: Mapping[int, Mode]) -> ClientsEvaluation | None:
    """Have the clients evaluate the deployed round's model once more.

    Args:
        on_clients: Has them evaluate.
        state: After the last round.
        modes: By position, how each trained the last time.

    Returns:
        What they found; None where no client told anything.
    """
    try:
        found = on_clients.evaluate_own(state.deployed_round, state.deployed, modes)
    except Exception as error:  # of the user's code: the run is done, and its model is written
        rank_zero_warn(f"summary: nothing is told of clients: {type(error).__name__}: {first_line(error)}")
        return None
    return found if any(client.metrics for client in found.clients) else None


def metric_told(found: ClientsEvaluation, monitor: str | None) -> str:
    """The metric of which figures are told: what the run monitors, or else the first that clients log."""
    logged = list(dict.fromkeys(name.partition("/")[2] for client in found.clients for name in client.metrics))
    wanted = metric_of(monitor or "")
    return wanted if wanted in logged else logged[0]


def in_summary(
    found: ClientsEvaluation, metric: str, direction: MonitorMode | None, tiers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What `summary.json` holds under `on_clients`.

    Args:
        found: What they found.
        metric: Of which figures are told.
        direction: Which way it is better, where that is known.
        tiers: In the order in which they are told.
    """

    def of(clients: Sequence[EvaluatedClient]) -> dict[str, Any]:
        return count(clients) | figures(clients, metric, direction)

    told = {"metric_name": metric, "without": found.without, **of(found.clients)}
    return told | by_groups(found.clients, tiers, of)


def by_groups(
    clients: Sequence[EvaluatedClient],
    tiers: Sequence[Mapping[str, Any]],
    told: Callable[[Sequence[EvaluatedClient]], dict[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    """The same of the clients of each tier and of each mode, under `tiers` and `modes`.

    Args:
        clients: All of them.
        tiers: In the order in which they are told.
        told: What is told of some.
    """
    of_tier, of_mode = by_group(clients, "tier"), by_group(clients, "mode")
    order = dict.fromkeys([*(tier["tier"] for tier in tiers), *sorted(of_tier)])
    return {
        "tiers": [{"tier": each} | told(of_tier[each]) for each in order if each in of_tier],
        "modes": [{"mode": each} | told(of_mode[each]) for each in (*MODES, UNTRAINED) if each in of_mode],
    }


def count(clients: Sequence[EvaluatedClient]) -> dict[str, int]:
    """How many they are, and their examples."""
    return {"clients": len(clients), "examples": sum(client.num_examples for client in clients)}


def figures(clients: Sequence[EvaluatedClient], metric: str, direction: MonitorMode | None) -> dict[str, Any]:
    """Statistics of the metric in each view that there is; without those that are no numbers."""
    told: dict[str, Any] = {}
    for view in VIEWS:
        found = statistics(clients, f"{view}/{metric}", direction)
        told[view] = {name: value for name, value in found.items() if math.isfinite(value)} or None
    return told


def worst_of(clients: Sequence[EvaluatedClient], metric: str, direction: MonitorMode | None) -> dict[str, Any] | None:
    """What `summary.json` holds under `worst_client`: the client for which the deployed model does worst."""
    if direction is None:
        return None
    views = ("quantized", "fp") if any(f"quantized/{metric}" in client.metrics for client in clients) else ("fp",)
    values = {client.client_id: client.metrics.get(f"{views[0]}/{metric}", math.nan) for client in clients}
    values = {client_id: value for client_id, value in values.items() if math.isfinite(value)}
    if not values:
        return None
    client_id = (max if direction == "min" else min)(values, key=values.__getitem__)
    name = f"{metric} on the examples that it holds back"
    return {"client_id": client_id, "metric": values[client_id], "metric_name": name, "clients_evaluated": len(values)}
