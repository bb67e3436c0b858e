"""Lightning's hooks of a data module, called without its Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.local.trainer_surface import TrainerSurface
from fedhq_lightning.support.first_process import is_first_process
from fedhq_lightning.support.lightnings import AnyDataModule, AnyModule, is_overridden


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
def prepared(data: Any, stage: str) -> Iterator[AnyDataModule | None]:
    """A data module between its `setup` and its `teardown`; None where loaders are given, to which nothing happens."""
    if not isinstance(data, AnyDataModule):
        yield None
        return
    prepare_data(data, stage)
    yield data
    release_data(data, stage)


def hook_owners(module: AnyModule, datamodule: AnyDataModule | None) -> dict[str, Any]:
    """Whose hook of a batch's way to its device is called: the data module's where it has its own, else the module's.

    Args:
        module: In training or evaluation.
        datamodule: Where batches come from; None for loaders alone.
    """
    owners: dict[str, Any] = {}
    for hook in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
        if datamodule is None or not is_overridden(hook, datamodule):
            continue
        owners[hook] = datamodule
        if is_overridden(hook, module):
            rank_zero_warn(
                f"{hook} is overridden in both {type(module).__name__} and {type(datamodule).__name__}; the data "
                "module's is called, as in Lightning"
            )
    return owners


def lies_on(device: torch.device, batch: Any) -> bool:
    """Whether Lightning would move a batch to the CPU for nothing: it is a list or tuple of tensors that are there."""
    return (
        device.type == "cpu"
        and type(batch) in (list, tuple)
        and all(type(each) is Tensor and each.is_cpu for each in batch)
    )
