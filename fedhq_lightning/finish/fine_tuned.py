"""What fine-tuning brings: each client's model before and after it, on what the client holds back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedhq_lightning.federated.fine_tuning_round import Tuned
from fedhq_lightning.finish.on_clients import by_groups, count, figures
from fedhq_lightning.run.evaluated_clients import ClientsEvaluation, EvaluatedClient
from fedhq_lightning.types import ClientId, MonitorMode


def fine_tuned(
    tuned: Tuned,
    before: ClientsEvaluation,
    after: ClientsEvaluation,
    metric: str,
    direction: MonitorMode | None,
    tiers: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """What `summary.json` holds under `fine_tuning`.

    Args:
        tuned: Who trained, how, and what it cost.
        before: What clients found before.
        after: What those that trained found then, with the modes in which they did.
        metric: Of which figures are told.
        direction: Which way it is better, where that is known.
        tiers: In the order in which they are told.

    Returns:
        Figures of the clients that trained, the same ones before and after; None where none did.
    """
    found_after = {client.client_id: client for client in after.clients if client.mode is not None}
    found_before: dict[ClientId, EvaluatedClient] = {
        client.client_id: replace(client, mode=found_after[client.client_id].mode)
        for client in before.clients
        if client.client_id in found_after
    }
    clients = list(found_before.values())
    if not clients:
        return None

    def of(some: Sequence[EvaluatedClient]) -> dict[str, Any]:
        then = [found_after[client.client_id] for client in some]
        return count(some) | {
            "before": figures(some, metric, direction),
            "after": figures(then, metric, direction),
        }

    cost = {"virtual_seconds": tuned.virtual_seconds, "downlink_bytes": tuned.downlink_bytes}
    return {"metric_name": metric, "without": tuned.without, **cost, **of(clients), **by_groups(clients, tiers, of)}
