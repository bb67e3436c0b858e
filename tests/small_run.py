"""A plausible small run directory, written in milliseconds, for tests of what shows runs."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhq_lightning.run.records import ClientRecord, RoundRecord, tier_figures

# name, compute seconds of one fit, bits per second
TIERS = (("server", 1.5, 1e8), ("phone", 14.0, 1e7), ("board", 55.0, 2e6))


def small_rounds(num_rounds: int = 12, num_clients: int = 10, cohort: int = 6, seed: int = 1) -> list[RoundRecord]:
    """Rounds 0..num_rounds with some late and quarantined clients; every second round is not evaluated."""
    generator = random.Random(seed)
    rounds, wall, virtual = [], 0.0, 0.0
    for number in range(num_rounds + 1):
        chosen = sorted(generator.sample(range(num_clients), cohort)) if number else []
        clients = tuple(_client(number, client_id, generator) for client_id in chosen)
        slowest = max((client.virtual_seconds for client in clients), default=0.0)
        seconds = 0.4 + generator.random()
        wall, virtual = wall + seconds, virtual + slowest
        fp = 0.97 - 0.87 * math.exp(-number / 3)
        evaluated = number % 2 == 0 or number == num_rounds
        metric_fp, metric_quantized = (fp, fp - 0.02 - 0.01 * generator.random()) if evaluated else (None, None)
        metrics = {"fp/val_accuracy": fp, "quantized/val_accuracy": metric_quantized or 0.0} if evaluated else {}
        if number:
            metrics["train/train_loss"] = 2.0 / number
        rounds.append(
            RoundRecord(
                round=number,
                metrics=metrics,
                metric_fp=metric_fp,
                metric_quantized=metric_quantized,
                wall_seconds=seconds,
                fit_wall_seconds=0.8 * seconds if number else 0.0,
                allocator_seconds=0.0001 * number,
                virtual_seconds=slowest,
                total_wall_seconds=wall,
                total_virtual_seconds=virtual,
                uplink_bytes=sum(client.uplink_bytes for client in clients),
                downlink_bytes=sum(client.downlink_bytes for client in clients),
                mode_counts={mode: sum(c.mode == mode for c in clients) for mode in ("fp", "ptq", "qat")},
                quarantined=sum(client.status == "quarantined" for client in clients),
                late=sum(client.status == "late" for client in clients),
                clients=clients,
            )
        )
    return rounds


def _client(number: int, client_id: int, generator: random.Random) -> ClientRecord:
    tier, compute, bits_per_second = TIERS[client_id % len(TIERS)]
    qat = tier == "server" or (tier == "phone" and number > 5)
    chance = generator.random()
    return ClientRecord(
        round=number,
        client_id=client_id,
        tier=tier,
        mode="qat" if qat else "ptq",
        status="late" if chance < 0.05 else "quarantined" if chance > 0.96 else "ok",
        num_examples=100 + 7 * client_id,
        num_steps=12,
        metrics={"train_loss": 2.0 / number},
        fit_wall_seconds=0.05,
        download_seconds=8 * 240_000 / bits_per_second,
        compute_seconds=compute * (1.6 if qat else 1.0) * (1 + 0.04 * client_id),
        upload_seconds=8 * 60_000 / (bits_per_second / 4),
        uplink_bytes=60_000,
        downlink_bytes=240_000,
    )


def small_summary(rounds: list[RoundRecord]) -> dict[str, Any]:
    """What the trainer would write to `summary.json`."""
    last = rounds[-1]
    modes = {mode: sum(record.mode_counts[mode] for record in rounds) for mode in ("fp", "ptq", "qat")}
    return {
        "rounds": last.round,
        "metric_name": "val_accuracy",
        "metric_fp": last.metric_fp,
        "metric_quantized": last.metric_quantized,
        "scheme": "w4a8",
        "wall_seconds": last.total_wall_seconds,
        "fit_wall_seconds": sum(record.fit_wall_seconds for record in rounds),
        "virtual_seconds": last.total_virtual_seconds,
        "allocator_seconds": sum(record.allocator_seconds for record in rounds),
        "uplink_bytes": sum(record.uplink_bytes for record in rounds),
        "downlink_bytes": sum(record.downlink_bytes for record in rounds),
        "mode_counts": modes,
        "quarantined": sum(record.quarantined for record in rounds),
        "late": sum(record.late for record in rounds),
        "seed": 1,
        "versions": {"fedhq_lightning": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6"},
        "best_round": last.round,
        "monitor": "val_accuracy",
        "run_dir": "20250101-120000-ab12",
        "worst_client": {"client_id": 5, "metric": 0.8125},
        "tiers": tier_figures(rounds),
        "export": "model.pt2",
        "recipe": "digits <smoke> & more",
    }


def write_run(run_dir: Path, rounds: list[RoundRecord] | None = None, **changes: Any) -> Path:
    """Write the folder; `changes` go into the summary (None takes a key out)."""
    rounds = small_rounds() if rounds is None else rounds
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record.to_json(), allow_nan=False) + "\n" for record in rounds]
    (run_dir / "rounds.jsonl").write_text("".join(lines))
    summary = {key: value for key, value in (small_summary(rounds) | changes).items() if value is not None}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    (run_dir / "recipe.yaml").write_text("# a recipe with <tags> & signs\ntrainer:\n  max_rounds: 12\n  scheme: w4a8\n")
    return run_dir


# round, slack, share, trial, incumbent, judged, objective, reason
_BOUNDARIES = (
    (1, 0.05, 0.2, 0, 0, None, None, "the boundary chosen before round 1"),
    (3, 0.3, 0.4, 1, 0, None, None, "trial 1 challenges trial 0"),
    (5, 0.05, 0.2, 0, 0, None, None, "trial 0, the incumbent, to compare trial 1 with"),
    (7, 0.3, 0.4, 1, 0, 1, 0.25, "trial 1 is promising (1.4 standard deviations ahead)"),
    (9, 0.3, 0.4, 1, 1, 1, 0.5, "trial 1 beat the incumbent by 2.6 standard deviations and takes over"),
    (11, 0.5, 0.1, 2, 1, None, None, "trial 2 challenges trial 1"),
)
EXPLANATION = "Hardware: 3 board with 60 in PTQ & 95 in QAT. T = 62.1 s (slack 0.05), rho = 0.6 (share <0.2>)."


def allocation_of(number: int) -> dict[str, Any]:
    """The boundary of one round as HybridAllocator writes it, the reason too."""
    begun = [each for each in _BOUNDARIES if each[0] <= number]
    first, slack, share, trial, incumbent, judged, objective, reason = begun[-1]
    seconds = (1 + slack) * (59.0 + number)
    boundary = {"round": number, "slack": slack, "share": share, "seconds": seconds, "risk": 0.8 - share}
    boundary |= {"trial": float(trial), "incumbent": float(incumbent)}
    if judged is not None and number == first:
        boundary |= {"judged": float(judged), "objective": objective}
    return boundary | {"reason": reason}


def allotted_rounds(**arguments: Any) -> list[RoundRecord]:
    """`small_rounds` of a run with an allocator that logs its boundary."""
    rounds = small_rounds(**arguments)
    for index, record in enumerate(rounds[1:], start=1):
        logged = allocation_of(record.round)
        reason = logged.pop("reason")
        rounds[index] = replace(record, reason=reason, allocation={k: v for k, v in logged.items() if k != "round"})
    return rounds


def write_allocation(run_dir: Path, num_rounds: int = 12, num_clients: int = 10, **changes: Any) -> Path:
    """Add `allocation.json` to a folder of `write_run`, as HybridAllocator writes it; `changes` go into it."""
    generator = random.Random(2)
    clients = []
    for client_id in range(num_clients):
        tier, compute, _ = TIERS[client_id % len(TIERS)]
        fit = _client(1, client_id, random.Random(0))
        ptq = compute * (1 + 0.04 * (client_id % 10)) + fit.download_seconds + fit.upload_seconds
        divergence = round(generator.random(), 3)
        clients.append(
            {
                "client_id": client_id,
                "tier": tier,
                "ptq_seconds": ptq,
                "qat_seconds": ptq + 0.6 * compute,
                "risk": 1.1 * divergence,
                "divergence": divergence,
                "sensitivity": None,
                "can_qat": client_id != 5,
                "mode": "qat" if tier == "server" else "ptq",
            }
        )
    boundaries = [allocation_of(number) for number in range(1, num_rounds + 1)]
    content = {"explanation": EXPLANATION, "clients": clients, "boundaries": boundaries} | changes
    (run_dir / "allocation.json").write_text(json.dumps(content, allow_nan=False))
    return run_dir
