"""Twelve clients on two kinds of devices, and rounds as a run would log them, for tests of the hybrid allocator."""

from dataclasses import replace

from fedhq_lightning.allocation import AllocationContext, HybridAllocator
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.types import Plan

CLIENTS = [*range(6), *(f"site-{letter}" for letter in "abcdef")]
SECONDS = {"board": {"fp": 9.0, "ptq": 10.0, "qat": 13.0}, "phone": {"fp": 4.0, "ptq": 3.0, "qat": 5.0}}

STEPS = 1000
"""Of a local fit; so many that a share of them is taken almost exactly."""
SLOWER = {"board": {"fp": 9.0, "ptq": 30.0, "qat": 33.0}, "phone": {"fp": 4.0, "ptq": 9.0, "qat": 11.0}}


def tier(client_id) -> str:
    return "board" if CLIENTS.index(client_id) % 3 == 0 else "phone"


def steps(plan: Plan, client_id) -> int:
    return int(STEPS * plan.work.get(client_id, 1.0) + 1e-9)


def cohort(round_number: int) -> list:
    return [CLIENTS[(round_number + step) % 12] for step in range(6)]


def context(**changes) -> AllocationContext:
    given = AllocationContext(
        client_ids=CLIENTS,
        seed=5,
        client_seconds=lambda client_id, mode: SECONDS[tier(client_id)][mode],
        divergence=lambda client_id, measure: CLIENTS.index(client_id) / 12,
        sensitivity=lambda client_id, measure: {"sqnr": 0.1, "loss": 1.0 + CLIENTS.index(client_id)}[measure],
        tier=tier,
        cohort=cohort,
        num_steps=lambda client_id: STEPS,
        max_rounds=30,
    )
    return replace(given, **changes)


def ready(changes=None, **arguments) -> HybridAllocator:
    allocator = HybridAllocator(**{"qat_from": 0.0, "slowdown": 0.1} | arguments)
    allocator.begin(context(**(changes or {})))
    return allocator


def record(
    round_number, plan, metric=None, cost=0.0, times=SECONDS, sensitivity=None, update_divergence=None
) -> RoundRecord:
    clients = tuple(
        ClientRecord(
            round=round_number,
            client_id=client_id,
            tier=tier(client_id),
            mode=mode,
            status="ok",
            num_examples=10,
            num_steps=steps(plan, client_id),
            metrics={},
            fit_wall_seconds=0.1,
            download_seconds=0.0,
            compute_seconds=times[tier(client_id)][mode] * steps(plan, client_id) / STEPS,
            upload_seconds=0.0,
            uplink_bytes=1,
            downlink_bytes=1,
            sensitivity=None if sensitivity is None else sensitivity(client_id),
            update_divergence=None if update_divergence is None else update_divergence(client_id),
        )
        for client_id, mode in plan.modes.items()
    )
    seconds = max((client.virtual_seconds for client in clients), default=0.0)
    metric = 0.01 * round_number if metric is None else metric
    return RoundRecord(
        round=round_number,
        metrics={},
        metric_fp=metric + cost,
        metric_quantized=metric,
        wall_seconds=1.0,
        fit_wall_seconds=1.0,
        allocator_seconds=0.0,
        virtual_seconds=seconds,
        total_wall_seconds=float(round_number),
        total_virtual_seconds=10.0 * round_number,
        uplink_bytes=1,
        downlink_bytes=1,
        mode_counts=plan.counts(),
        quarantined=0,
        late=0,
        clients=clients,
        reason=plan.reason,
        allocation=dict(plan.logged),
    )


def play(allocator: HybridAllocator, rounds, **logged) -> list:
    plans = []
    for number in rounds:
        plans.append(allocator.propose(number, cohort(number)))
        allocator.observe(record(number, plans[-1], **logged))
    return plans
