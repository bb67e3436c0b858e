"""Lightning's hooks of a data module, called without its Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.local.trainer_surface import TrainerSurface
from fedhq_lightning.support.first_process import is_first_process
from fedhq_lightning.support.lightnings import AnyDataModule, is_overridden


def prepare_data(datamodule: AnyDataModule, stage: str) -> None:
    """Download in the first process, set up in every one."""
    unwrapped(datamodule).trainer = TrainerSurface()  # type: ignore[assignment]  # a stand-in, not a subclass
    if is_first_process():
        datamodule.prepare_data()
    datamodule.setup(stage)


def release_data(datamodule: AnyDataModule, stage: str) -> None:
    """Tear down what `prepare_data` set up."""
    datamodule.teardown(stage)
    unwrapped(datamodule).trainer = None


@contextmanager
def prepared(data: Any, stage: str) -> Iterator[None]:
    """A data module between its `setup` and its `teardown`; nothing happens to loaders."""
    if not isinstance(data, AnyDataModule):
        yield
        return
    prepare_data(data, stage)
    yield
    release_data(data, stage)


class BatchTransfer:
    """Brings batches to a device as Lightning does, by three hooks, each the data module's where it has its own.

    Args:
        module: Its hooks are called where the data module has none.
        datamodule: Where the batches come from; None for loaders alone. Inside its hooks `self.trainer` is `trainer`.
        trainer: The module's.
    """

    def __init__(self, module: L.LightningModule, datamodule: AnyDataModule | None, trainer: Any) -> None:
        self._module = module
        self._datamodule = None if datamodule is None else unwrapped(datamodule)
        self._trainer = trainer
        self._before = self._owner("on_before_batch_transfer")
        self._move = self._owner("transfer_batch_to_device")
        self._after = self._owner("on_after_batch_transfer")

    def __call__(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch on the device, as the hooks leave it."""
        if self._datamodule is not None:
            self._datamodule.trainer = self._trainer  # lanes and evaluations take turns
        batch = self._before.on_before_batch_transfer(batch, dataloader_idx)
        batch = self._move.transfer_batch_to_device(batch, device, dataloader_idx)
        return self._after.on_after_batch_transfer(batch, dataloader_idx)

    def _owner(self, hook: str) -> Any:
        if self._datamodule is None or not is_overridden(hook, self._datamodule):
            return self._module
        if is_overridden(hook, self._module):
            rank_zero_warn(
                f"{hook} is overridden in both {type(self._module).__name__} and {type(self._datamodule).__name__}; "
                "the data module's is called, as in Lightning"
            )
        return self._datamodule
