"""`summary.json`: the run in one dict."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.deploy.model_folder import Deployment
from fedhq_lightning.federated.checks import as_loaders
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.quantize import LayerScheme, QuantScheme
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.text import first_line
from fedhq_lightning.types import MODES, ClientId
from fedhq_lightning.version import __version__

_PACKAGES = ("fedhq_lightning", "torch", "torchao", "lightning", "torchmetrics", "wandb", "flwr-datasets")
_MOST_CLIENTS = 200
"""Clients on whose own examples the deployed model is evaluated; beyond that it would outlast the run."""


def summarize(
    state: RunState,
    monitor: str | None,
    scheme: QuantScheme | None,
    grids: Mapping[str, LayerScheme],
    seed: int,
    deployment: Deployment | None,
    worst_client: dict[str, Any] | None,
    per_class: dict[str, Any] | None,
    tiers: list[dict[str, Any]],
    inference: dict[str, Any] | None,
    recipe: str,
    run_dir: Path,
) -> dict[str, Any]:
    """Figures of the whole run; `metric_fp` and `metric_quantized` are those of the deployed round.

    Without a deployment, a model that was not written, `metric_quantized` is what the round logged.
    Wall times cover the rounds and the evaluation before them, not set-up, export and report.
    """
    best = next((record for record in state.records if record.round == state.best_round), None)
    quantized = best.metric_quantized if best else None
    if deployment is not None and monitor is not None and monitor in deployment.metrics:
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
        "per_class": per_class,
        "tiers": tiers,
        "export": deployment.export if deployment else None,
        "export_reason": deployment.reason if deployment else "not asked for",
        "inference": inference,
        "seed": seed,
        "compiled_kernels": has_compiler(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def worst_client(
    evaluator: Evaluator,
    state: RunState,
    monitor: str | None,
    monitor_mode: str,
    datamodule: FederatedDataModule,
    trained: Iterable[ClientId],
) -> dict[str, Any] | None:
    """The client on whose own training examples the deployed model does worst; None where it cannot be told.

    A client's training batches take the place of the held-out loader that `monitor` is logged from. Where
    `validation_step` cannot take them, a warning says why.
    """
    try:
        values = _values_on_clients(evaluator, state, str(monitor), datamodule, trained)
    except Exception as error:  # of the user's code, on batches that it was not written for
        rank_zero_warn(
            "summary: no worst client, since validation does not run on the clients' training batches: "
            f"{type(error).__name__}: {first_line(error)}"
        )
        return None
    if not values:
        return None
    worst = (max if monitor_mode == "min" else min)(values, key=values.__getitem__)
    name = f"{monitor} on its own training examples"
    return {"client_id": worst, "metric": values[worst], "metric_name": name, "clients_evaluated": len(values)}


def _values_on_clients(
    evaluator: Evaluator,
    state: RunState,
    monitor: str,
    datamodule: FederatedDataModule,
    trained: Iterable[ClientId],
) -> dict[ClientId, float]:
    """What is monitored, where it is finite, on the training batches of the clients that took part."""
    module = evaluator.model(state.deployed) if evaluator.scheme is None else evaluator.deployed(state.deployed)
    loaders: list[Any] = [[] for _ in as_loaders(datamodule.val_dataloader())]
    _, _, suffix = monitor.partition("/dataloader_idx_")
    values = {}
    for client_id in islice(trained, _MOST_CLIENTS):
        loaders[int(suffix or 0)] = datamodule.train_dataloader(client_id)
        value = evaluator.metrics_of(module, loaders).get(monitor, math.nan)
        if math.isfinite(value):
            values[client_id] = value
    return values


def _version(package: str) -> str:
    if package == "fedhq_lightning":
        return __version__  # of a checkout too
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
