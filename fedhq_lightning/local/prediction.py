"""Predictions of a module, as Lightning's `Trainer.predict` gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.local.evaluation import as_loaders
from fedhq_lightning.support.lightnings import AnyDataModule, is_overridden
from fedhq_lightning.support.text import first_line
from fedhq_lightning.types import FitOptions


def loaders_of(data: Any) -> list[Any]:
    """Loaders of what was given: a loader, several, or a data module that is set up and has `predict_dataloader`.

    Raises:
        ConfigurationError: A data module without `predict_dataloader`, or nothing.
    """
    if isinstance(data, AnyDataModule):
        # Partitioned data are dealt for training only: what is to be predicted is the wrapped module's.
        data = unwrapped(data)
        if not is_overridden("predict_dataloader", data):
            raise ConfigurationError(
                f"{type(data).__name__} has no predict_dataloader; add one, or give a loader, such as "
                "datamodule.val_dataloader()"
            )
        data = data.predict_dataloader()
    loaders = as_loaders(data)
    if not loaders:
        raise ConfigurationError("predict: no data; give a loader, several, or a data module with predict_dataloader")
    return loaders


def predict(
    module: L.LightningModule,
    loaders: Sequence[Any],
    options: FitOptions,
    device: torch.device,
    datamodule: L.LightningDataModule | None = None,
) -> list[Any]:
    """What `predict_step` returns for every batch, on the CPU; a list for each loader where there are several.

    Args:
        module: On `device`; left in the mode (training or evaluation) in which it was.
        loaders: At least one.
        options: Only to build a `ClientTrainer`.
        device: Where batches go.
        datamodule: Where the loaders come from, for its hooks.

    Raises:
        ConfigurationError: Lightning's own `predict_step` hands whole batches to `forward`, which does not take them.
    """
    trainer = ClientTrainer(module, options, device, datamodule=datamodule)
    trainer.predicting = True
    several, training = len(loaders) > 1, {each: each.training for each in module.modules()}
    module.eval()
    outputs: list[list[Any]] = []
    with torch.no_grad():
        module.on_predict_start()
        module.on_predict_epoch_start()
        for index, loader in enumerate(loaders):
            outputs.append([])
            for batch_idx, batch in enumerate(loader):
                batch = trainer.to_device(batch, index)
                indices = (batch_idx, index) if several else (batch_idx,)
                module.on_predict_batch_start(batch, *indices)
                output = _step(module, batch, *indices)
                module.on_predict_batch_end(output, batch, *indices)
                outputs[-1].append(move_data_to_device(output, torch.device("cpu")))
        module.on_predict_epoch_end()
        module.on_predict_end()
    for each, was_training in training.items():
        each.training = was_training
    return outputs if several else outputs[0]


def _step(module: L.LightningModule, batch: Any, batch_idx: int, *dataloader_idx: int) -> Any:
    step = module.predict_step
    if not is_overridden("predict_step", module) and not isinstance(batch, torch.Tensor):
        try:
            return step(batch)
        except Exception as error:
            kind = type(module).__name__
            raise ConfigurationError(
                f"{kind} has no predict_step, so its forward is called with the whole batch ({type(batch).__name__}), "
                f"and fails ({first_line(error)}); add predict_step(self, batch, batch_idx), which picks the inputs"
            ) from error
    with_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    return step(batch, batch_idx, *dataloader_idx) if with_index else step(batch, *dataloader_idx)
