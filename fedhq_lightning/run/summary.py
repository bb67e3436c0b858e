"""`summary.json`: the run in one dict."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedhq_lightning.deploy.deployment import Deployment
from fedhq_lightning.quantize import LayerScheme, QuantScheme
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.run.records import LEFT_OUT
from fedhq_lightning.run.state import RunState
from fedhq_lightning.types import MODES
from fedhq_lightning.version import __version__

_PACKAGES = ("fedhq_lightning", "torch", "torchao", "lightning", "torchmetrics", "wandb", "flwr-datasets")


def summarize(
    state: RunState,
    monitor: str | None,
    scheme: QuantScheme | None,
    grids: Mapping[str, LayerScheme],
    seed: int,
    deployment: Deployment | None,
    test_metrics: dict[str, float] | None,
    worst_client: dict[str, Any] | None,
    on_clients: dict[str, Any] | None,
    per_class: dict[str, Any] | None,
    tiers: list[dict[str, Any]],
    inference: dict[str, Any] | None,
    recipe: str,
    run_dir: Path,
    wall_phases: Mapping[str, float],
    device: str,
    native_kernels: str | None,
    failure: str = "",
    privacy: dict[str, Any] | None = None,
    fine_tuning: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Figures of the whole run; `metric_fp` and `metric_quantized` are those of the deployed round.

    `test_metrics` are `fp/NAME` and `quantized/NAME` on the test data. Without a deployment, a model that was not
    written, `metric_quantized` is what the round logged. `failure` says why a run has come to nothing,
    `privacy` what was promised and spent. `fine_tuning`, which follows the last round, counts among virtual seconds and
    bytes. `device` is where modules ran, `native_kernels` whose instructions the lanes' own kernels used there.
    Wall times cover the rounds and the evaluation before them, not set-up, export and report: those are among
    `wall_phases`, seconds by phase.
    """
    best = next((record for record in state.records if record.round == state.best_round), None)
    quantized = best.metric_quantized if best else None
    if deployment is not None and monitor is not None and monitor in deployment.metrics:
        quantized = deployment.metrics[monitor]
    rounds, tuning = [record for record in state.records if record.round > 0], fine_tuning or {}
    return {
        "recipe": recipe,
        "run_dir": run_dir.name,
        "failure": failure or None,
        "rounds": state.round,
        "best_round": state.best_round,
        "metric_name": monitor,
        "metric_fp": best.metric_fp if best else None,
        "metric_quantized": quantized if quantized is not None and math.isfinite(quantized) else None,
        "test_metrics": test_metrics,
        "scheme": None if scheme is None else str(scheme),
        "layer_schemes": {name.removesuffix(".weight"): str(grid) for name, grid in grids.items()},
        "wall_seconds": state.wall_seconds,
        "fit_wall_seconds": sum(record.fit_wall_seconds for record in rounds),
        "wall_phases": dict(wall_phases),
        "virtual_seconds": state.virtual_seconds + tuning.get("virtual_seconds", 0.0),
        "allocator_seconds": sum(record.allocator_seconds for record in rounds),
        "uplink_bytes": sum(record.uplink_bytes for record in rounds),
        "downlink_bytes": sum(record.downlink_bytes for record in rounds) + tuning.get("downlink_bytes", 0),
        "mode_counts": {mode: sum(record.mode_counts[mode] for record in rounds) for mode in MODES},
        **{status: sum(getattr(record, status) for record in rounds) for status in LEFT_OUT},
        "privacy": privacy,
        "worst_client": worst_client,
        "on_clients": on_clients,
        "fine_tuning": fine_tuning,
        "per_class": per_class,
        "tiers": tiers,
        "export": deployment.export if deployment else None,
        "export_reason": deployment.reason if deployment else failure or "not asked for",
        "files": [file.described() for file in deployment.files] if deployment else [],
        "inference": inference,
        "seed": seed,
        "device": device,
        "compiled_kernels": has_compiler(),
        "native_kernels": native_kernels,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Those of Python and of the packages that bits may depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    if package == "fedhq_lightning":
        return __version__  # of a checkout too
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
