"""Training steps of copies of a module, beside the Trainer that trains the module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from fedhq_lightning.drop_in.copies import as_float, copy_of_batch
from fedhq_lightning.drop_in.trainer_view import TrainerView
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.lightnings import AnyModule
from fedhq_lightning.support.seeds import generators_kept


@contextmanager
def in_training(trainer: pl.Trainer, pl_module: pl.LightningModule, copied: pl.LightningModule) -> Iterator[None]:
    """Let a copy take training steps, and the Trainer and the module notice nothing of it.

    Args:
        trainer: The copy sees it through a view that keeps what it logs.
        pl_module: The module that is trained.
        copied: Its copy.

    Raises:
        ConfigurationError: Its steps would move the real optimizers and schedulers.
    """
    if not pl_module.automatic_optimization:
        raise ConfigurationError("its training_step optimizes by itself")
    view: Any = TrainerView(trainer, copied)
    for each in copied.modules():
        if isinstance(each, AnyModule):
            each._trainer = view
    # The strategy looks at the module that is trained to see whether a step runs.
    before = pl_module._current_fx_name
    pl_module._current_fx_name = copied._current_fx_name = "training_step"
    try:
        with generators_kept():
            yield
    finally:
        pl_module._current_fx_name = before


def training_step(
    trainer: pl.Trainer, copied: pl.LightningModule, batch: Any, is_converted: bool = False
) -> torch.Tensor | None:
    """One step of a copy, `in_training`; its loss, where it gave one.

    Args:
        trainer: For the precision of the step.
        copied: The copy.
        batch: On its device; it stays as it is.
        is_converted: Whether it is the deployed model, which runs in float32 between its integer layers.
    """
    batch = move_data_to_device(copy_of_batch(batch), copied.device)
    if is_converted:
        batch = as_float(batch)
    copied.trainer._results.batch = batch  # type: ignore[union-attr]  # of the view
    takes_batch_idx = is_param_in_hook_signature(copied.training_step, "batch_idx", min_args=2)
    with nullcontext() if is_converted else trainer.precision_plugin.train_step_context():
        output = copied.training_step(*((batch, 0) if takes_batch_idx else (batch,)))
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, torch.Tensor) else None
