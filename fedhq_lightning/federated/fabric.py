"""Lightning Fabric on the hardware that is there: it launches, places, autocasts and communicates."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.collectives import lightning_quiet


def make_fabric(
    accelerator: str, devices: int | str | list[int], num_nodes: int, strategy: str, precision: Any
) -> Fabric:
    """Fabric on hardware that is there.

    Args:
        accelerator: As in Fabric.
        devices: As in Fabric; a GPU that is listed several times gets as many processes.
        num_nodes: As in Fabric.
        strategy: Its name.
        precision: As in Fabric.

    Raises:
        ConfigurationError: Values that Fabric does not know, hardware that is not there, or a strategy that starts its
            processes in another way than by running the script again: Fabric would return from the first of them.
    """
    if strategy == "fedhq":
        raise ConfigurationError(
            "strategy 'fedhq' is for lightning.Trainer, with FederatedAveraging (importing any name from "
            "fedhq_lightning.callbacks registers it there); FederatedTrainer takes 'auto' or 'ddp'"
        )
    given = f"accelerator {accelerator!r}, devices {devices!r}, strategy {strategy!r}"
    try:
        with lightning_quiet():
            placed: Any = {"devices": devices, "strategy": strategy}
            if isinstance(devices, list) and len(set(devices)) < len(devices) and strategy in ("auto", "ddp"):
                placed = _several_on_one(devices)
            fabric = Fabric(accelerator=accelerator, num_nodes=num_nodes, precision=precision, **placed)
    # Fabric's own words for what it refuses.
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise ConfigurationError(f"{given}: {error}") from error
    launcher = fabric.strategy.launcher
    if launcher is not None and not isinstance(launcher, _SubprocessScriptLauncher):
        method = getattr(launcher, "_start_method", "a function")
        raise ConfigurationError(
            f"strategy {strategy!r} starts processes by {method}, which cannot work here; take 'auto' or 'ddp', which "
            "run the script once a process (in a notebook: devices=1)"
        )
    environment = getattr(launcher, "cluster_environment", None)
    if isinstance(environment, SLURMEnvironment):  # known to all from here on, should one of them fail
        os.environ.setdefault("MASTER_ADDR", environment.main_address)
        os.environ.setdefault("MASTER_PORT", str(environment.main_port))
    return fabric


def _several_on_one(devices: list[int]) -> dict[str, Any]:
    """What has Fabric start a process for each of these GPUs, though some are the same one, in this order.

    They meet by gloo: NCCL takes one process a GPU. What they tell each other are packed models and integer sums, which
    lie on the CPU anyway.
    """
    places = [torch.device("cuda", index) for index in devices]
    strategy = DDPStrategy(parallel_devices=places, process_group_backend="gloo")
    return {"devices": list(dict.fromkeys(devices)), "strategy": strategy}
