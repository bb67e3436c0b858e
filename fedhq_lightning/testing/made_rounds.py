"""A run's clients, and rounds as a run would log them, without a run."""

from collections.abc import Sequence
from typing import Any

from fedhq_lightning.allocation.protocol import AllocationContext
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.types import ClientId, Plan

_STEPS = 20
_SECONDS = {"fp": 2.0, "ptq": 1.0, "qat": 2.5}


def made_context(client_ids: Sequence[ClientId], max_rounds: int, **changes: Any) -> AllocationContext:
    """Clients of three speeds on two kinds of devices, whose data diverge more or less.

    Args:
        client_ids: Every client.
        max_rounds: Rounds of the run.
        changes: Fields of the context that are given otherwise.
    """
    place = {client_id: index for index, client_id in enumerate(client_ids)}
    given: dict[str, Any] = {
        "client_ids": client_ids,
        "seed": 7,
        "client_seconds": lambda client_id, mode: _SECONDS[mode] * (1 + place[client_id] % 3),
        "divergence": lambda client_id, measure: (place[client_id] * 7 % 20) / 20,
        "sensitivity": lambda client_id, measure: 0.1 * (1 + place[client_id] % 4),
        "num_steps": lambda client_id: _STEPS,
        "tier": lambda client_id: f"tier {place[client_id] % 2}",
        "max_rounds": max_rounds,
    }
    return AllocationContext(**(given | changes))


def made_record(round_number: int, plan: Plan, context: AllocationContext, **changes: Any) -> RoundRecord:
    """The record of a round in which every client of the plan did as predicted.

    Args:
        round_number: From 1; 0 for the evaluation before.
        plan: What the allocator proposed.
        context: What it was told.
        changes: Fields of the record that are given otherwise.
    """
    clients = tuple(
        ClientRecord(
            round=round_number,
            client_id=client_id,
            tier=context.tier(client_id),
            mode=mode,
            status="ok",
            num_examples=10,
            num_steps=max(1, int(_STEPS * plan.work.get(client_id, 1.0))),
            metrics={"loss": 1.0 / (1 + round_number)},
            fit_wall_seconds=0.1,
            download_seconds=0.0,
            compute_seconds=context.client_seconds(client_id, mode) * plan.work.get(client_id, 1.0),
            upload_seconds=0.0,
            uplink_bytes=100,
            downlink_bytes=400,
            sensitivity=0.1,
            update_divergence=0.2,
        )
        for client_id, mode in plan.modes.items()
    )
    metric = 0.9 - 0.8 / (1 + round_number)
    given: dict[str, Any] = {
        "round": round_number,
        "metrics": {"fp/val_accuracy": metric, "quantized/val_accuracy": metric - 0.05},
        "metric_fp": metric,
        "metric_quantized": metric - 0.05,
        "wall_seconds": 1.0,
        "fit_wall_seconds": 0.5,
        "allocator_seconds": 0.01,
        "virtual_seconds": max((each.virtual_seconds for each in clients), default=0.0),
        "total_wall_seconds": 1.0 * round_number,
        "total_virtual_seconds": 8.0 * round_number,
        "uplink_bytes": 100 * len(clients),
        "downlink_bytes": 400 * len(clients),
        "mode_counts": plan.counts(),
        "quarantined": 0,
        "late": 0,
        "clients": clients,
        "reason": plan.reason,
        "allocation": dict(plan.logged),
    }
    return RoundRecord(**(given | changes))
