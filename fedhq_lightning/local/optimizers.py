"""Reading `configure_optimizers`, with Lightning's own parser."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.core import optimizer as lightning_optimizer
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.module_checks import check_automatic_optimization


def configured_optimizer(module: L.LightningModule) -> tuple[Optimizer, list[LRSchedulerConfig]]:
    """The module's one optimizer and its schedulers, in every form that Lightning accepts.

    Raises:
        ConfigurationError: Manual optimization, no optimizer, several optimizers, or a malformed answer.
    """
    name = type(module).__name__
    check_automatic_optimization(module)
    answer: Any = module.configure_optimizers()
    if answer is None:
        raise ConfigurationError(f"{name}.configure_optimizers returned None; return one optimizer")
    if isinstance(answer, Optimizer):
        return answer, []
    try:
        optimizers, schedulers, monitor = lightning_optimizer._configure_optimizers(answer)
        configs = lightning_optimizer._configure_schedulers_automatic_opt(schedulers, monitor)
    except Exception as error:
        raise ConfigurationError(f"{name}.configure_optimizers: {error}") from error
    if len(optimizers) != 1:
        raise ConfigurationError(
            f"{name}.configure_optimizers returned {len(optimizers)} optimizers; several optimizers need manual "
            "optimization, which federated training does not support; return one"
        )
    return optimizers[0], configs


def scale_learning_rate(optimizer: Optimizer, schedulers: list[LRSchedulerConfig], factor: float) -> None:
    """Multiply every learning rate, also those that schedulers remember, by `factor`; lower bounds stay."""
    if factor == 1.0:
        return
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr", "max_lr", "min_lr"):
            if name in group:
                group[name] = group[name] * factor
    for config in schedulers:
        _scale_scheduler(config.scheduler, factor)


def _scale_scheduler(scheduler: Any, factor: float) -> None:
    for name in ("base_lrs", "max_lrs"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])
    for part in getattr(scheduler, "_schedulers", ()):
        _scale_scheduler(part, factor)
