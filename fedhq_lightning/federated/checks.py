"""What can be known to be wrong before the first round, and the one batch that tells."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.model_helpers import is_overridden

from fedhq_lightning.analysis.hardware import LayerCost, measure_costs
from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.federated.client_trainer import ClientTrainer, FitOptions
from fedhq_lightning.types import ClientId


@dataclass(frozen=True)
class Probe:
    """What one training batch and one held-out batch told.

    Attributes:
        costs: Layers of the model.
        batch_size: Examples in the training batch.
        train_names: What `training_step` logs.
        validation_names: What `validation_step` logs; empty without one.
        example_args: Arguments of the module's own `forward` in validation, or None if it was not called.
    """

    costs: list[LayerCost]
    batch_size: int
    train_names: list[str]
    validation_names: list[str]
    example_args: tuple[Any, ...] | None


def probe(
    template: L.LightningModule,
    datamodule: FederatedDataModule,
    client_id: ClientId,
    options: FitOptions,
    quantized: Mapping[str, bool],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Probe:
    """Take one training step on a batch of one client, and evaluate one held-out batch, on a copy of the module.

    Args:
        template: The user's module, set up.
        datamodule: Gives the batches.
        client_id: A client with data.
        options: Length of a local fit.
        quantized: Layers that the scheme quantizes, and whether it quantizes their activations too.
        autocast: Context of the steps.

    Raises:
        ConfigurationError: Manual optimization, several optimizers, no loss, a scheduler that monitors what is not
            logged, a held-out loader without batches.
    """
    module = copy.deepcopy(template)
    trainer = ClientTrainer(module, options, torch.device("cpu"), autocast)
    batch, step, costs = datamodule.calibration_batch(client_id), module.training_step, list[LayerCost]()

    @wraps(step)
    def measured_step(*arguments: Any) -> Any:
        outputs: list[Any] = []
        costs[:] = measure_costs(lambda: outputs.append(step(*arguments)), module, quantized)
        if outputs[0] is None:
            raise ConfigurationError("training_step returned None for the first batch; return a loss tensor")
        trainer.should_stop = True
        return outputs[0]

    module.training_step = measured_step  # type: ignore[method-assign]  # on this copy only
    _, logged = trainer.fit([batch] * max(1, len(datamodule.train_dataloader(client_id))))
    train_names, schedulers = list(logged), trainer.lr_scheduler_configs
    for config in schedulers:
        if config.reduce_on_plateau and config.strict and config.monitor not in train_names:
            raise ConfigurationError(
                f"the scheduler monitors {config.monitor!r}, which a local fit does not log; it logs "
                f"{_listed(train_names)}; log it in training_step or take another scheduler"
            )
    validation_names, example_args = [], None
    loaders = validation_loaders(template, datamodule)
    if loaders:
        recorder = _ForwardRecorder(module)
        validation_names = list(trainer.evaluate([_first_batch(loader) for loader in loaders]))
        example_args = recorder.arguments
    return Probe(costs, _batch_size(batch, datamodule, client_id), train_names, validation_names, example_args)


def validation_loaders(template: L.LightningModule, datamodule: FederatedDataModule) -> list[Any]:
    """The held-out loaders, or none where the module has no `validation_step`."""
    if not is_overridden("validation_step", template):
        return []
    return as_loaders(datamodule.val_dataloader())


def as_loaders(loaders: Any) -> list[Any]:
    """One loader or several, as a list."""
    if loaders is None:
        return []
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def resolve_monitor(monitor: str | None, found: Probe) -> str | None:
    """The monitored name: as asked, else the first that validation logs, else the first that training logs.

    Raises:
        ConfigurationError: Nobody logs what was asked for.
    """
    names = found.validation_names or found.train_names
    if monitor is None:
        return names[0] if names else None
    if monitor not in names:
        raise ConfigurationError(
            f"trainer.monitor {monitor!r}: nobody logs it; logged: {_listed(names)}{nearest(monitor, names)}"
        )
    return monitor


def resolve_monitor_mode(monitor: str | None, monitor_mode: str | None) -> str:
    """As asked, else "min" for what is named a loss or an error, "max" for the rest."""
    if monitor_mode is not None:
        return monitor_mode
    words = ("loss", "error", "perplexity", "mse", "mae")
    return "min" if monitor is not None and any(word in monitor.lower() for word in words) else "max"


def empty_positions(datamodule: FederatedDataModule, client_ids: Sequence[ClientId]) -> frozenset[int]:
    """Positions of clients without training examples."""
    return frozenset(i for i, client_id in enumerate(client_ids) if datamodule.num_examples(client_id) == 0)


def _first_batch(loader: Any) -> list[Any]:
    for batch in loader:
        return [batch]
    raise ConfigurationError("val_dataloader gives no batch; it needs held-out examples, or no validation_step")


def _batch_size(batch: Any, datamodule: FederatedDataModule, client_id: ClientId) -> int:
    """Examples in the batch; where its kind does not tell, those of an average batch of the client."""
    try:
        return extract_batch_size(batch)
    except MisconfigurationException:
        return math.ceil(datamodule.num_examples(client_id) / len(datamodule.train_dataloader(client_id)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"


class _ForwardRecorder:
    """Remembers the first positional arguments with which a module's `forward` was called through `module(...)`."""

    def __init__(self, module: L.LightningModule) -> None:
        self.arguments: tuple[Any, ...] | None = None
        module.register_forward_pre_hook(self._remember)

    def _remember(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if self.arguments is None:
            self.arguments = arguments
