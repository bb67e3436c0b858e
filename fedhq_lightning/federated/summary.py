"""`summary.json`: the run in one dict."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.federated.deployment import Deployment
from fedhq_lightning.federated.evaluation import Evaluator
from fedhq_lightning.federated.records import tier_figures
from fedhq_lightning.federated.run_state import RunState
from fedhq_lightning.quantize import LayerScheme, QuantScheme
from fedhq_lightning.types import MODES, ClientId

_PACKAGES = ("fedhq_lightning", "torch", "torchao", "lightning", "torchmetrics", "wandb", "flwr-datasets")
_MOST_CLIENTS = 200
"""Clients on whose own examples the deployed model is evaluated; beyond that it would outlast the run."""


def summarize(
    state: RunState,
    monitor: str | None,
    scheme: QuantScheme | None,
    grids: Mapping[str, LayerScheme],
    seed: int,
    deployment: Deployment,
    worst_client: dict[str, Any] | None,
    recipe: str,
    run_dir: Path,
) -> dict[str, Any]:
    """Figures of the whole run; `metric_fp` and `metric_quantized` are those of the deployed round.

    Wall times cover the rounds and the evaluation before them, not set-up, export and report.
    """
    best = next((record for record in state.records if record.round == state.best_round), None)
    quantized = best.metric_quantized if best else None
    if monitor is not None and monitor in deployment.metrics:
        quantized = deployment.metrics[monitor]
    rounds = [record for record in state.records if record.round > 0]
    return {
        "recipe": recipe,
        "run_dir": run_dir.name,
        "rounds": state.round,
        "best_round": state.best_round,
        "metric_name": monitor,
        "metric_fp": best.metric_fp if best else None,
        "metric_quantized": quantized if quantized is not None and math.isfinite(quantized) else None,
        "scheme": None if scheme is None else str(scheme),
        "layer_schemes": {name.removesuffix(".weight"): str(grid) for name, grid in grids.items()},
        "wall_seconds": state.wall_seconds,
        "fit_wall_seconds": sum(record.fit_wall_seconds for record in rounds),
        "virtual_seconds": state.virtual_seconds,
        "allocator_seconds": sum(record.allocator_seconds for record in rounds),
        "uplink_bytes": sum(record.uplink_bytes for record in rounds),
        "downlink_bytes": sum(record.downlink_bytes for record in rounds),
        "mode_counts": {mode: sum(record.mode_counts[mode] for record in rounds) for mode in MODES},
        "quarantined": sum(record.quarantined for record in rounds),
        "late": sum(record.late for record in rounds),
        "worst_client": worst_client,
        "tiers": tier_figures(rounds),
        "export": deployment.export,
        "export_reason": deployment.reason,
        "seed": seed,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def worst_client(
    evaluator: Evaluator,
    state: RunState,
    monitor: str | None,
    monitor_mode: str,
    datamodule: FederatedDataModule,
) -> dict[str, Any] | None:
    """The client on whose own training examples the deployed model does worst; None where it cannot be told."""
    trained = dict.fromkeys(client.client_id for record in state.records for client in record.clients)
    clients: list[ClientId] = list(trained)[:_MOST_CLIENTS]
    module = evaluator.model(state.deployed) if evaluator.scheme is None else evaluator.deployed(state.deployed)
    values = {}
    for client_id in clients:
        metrics = evaluator.metrics_of(module, [datamodule.train_dataloader(client_id)])
        if math.isfinite(metrics.get(str(monitor), math.nan)):
            values[client_id] = metrics[str(monitor)]
    if not values:
        return None
    worst = (max if monitor_mode == "min" else min)(values, key=values.__getitem__)
    name = f"{monitor} on its own training examples"
    return {"client_id": worst, "metric": values[worst], "metric_name": name, "clients_evaluated": len(values)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
