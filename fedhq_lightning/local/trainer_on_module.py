"""How a client's trainer is put on a LightningModule, on the instance alone, and how a step is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.trainer.connectors.logger_connector.fx_validator import _FxValidator
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.trainer_surface import TrainerSurface
from fedhq_lightning.support.lightnings import AnyModule, is_overridden, lightnings_own


class StepResultError(ConfigurationError):
    """A training step returned something from which there is no way to gradients."""


_OPTIONS = ("on_step", "on_epoch", "reduce_fx", "add_dataloader_idx", "batch_size")


def attach(module: L.LightningModule, trainer: TrainerSurface, log: Callable[..., None]) -> None:
    """Make `trainer` the module's, with `log` for its own, and keep its metrics from talking to other processes."""
    for each in module.modules():
        if isinstance(each, AnyModule):
            each._trainer = trainer  # type: ignore[assignment]  # a stand-in, not a subclass
            if type(each).log is not lightnings_own(each).log:
                each._current_fx_name = "training_step"  # where Lightning's own `log` allows everything
            elif "log" not in vars(each) or _is_ours(each):
                each.log = log  # type: ignore[method-assign]  # on this instance only
        elif isinstance(each, Metric):
            each.sync_on_compute = each._to_sync = False


def detach(module: L.LightningModule) -> None:
    """Leave the module as if no trainer had been there."""
    for each in module.modules():
        if isinstance(each, AnyModule):
            each._trainer = each._current_fx_name = None
            if _is_ours(each):
                del each.log


def lightnings_log(log: Callable[..., None]) -> dict[str, Any]:
    """What `LightningModule.log` itself looks for on a trainer, so that a module's own `log` may call it by `super()`.

    Args:
        log: Takes what is logged.
    """

    def take(fx: str, name: str, value: Any, **options: Any) -> None:
        log(name, value, **{key: options[key] for key in _OPTIONS})

    return {
        "_results": SimpleNamespace(log=take),
        "_logger_connector": SimpleNamespace(should_reset_tensors=lambda fx: False),
        "_accelerator_connector": SimpleNamespace(is_distributed=False),
    }


def logging_levels(hook: str, name: str, on_step: bool | None, on_epoch: bool | None) -> tuple[bool, bool]:
    """Whether a value counts for its step and for its epoch: as in Lightning, the hook decides what was not said.

    Args:
        hook: That logs; empty where no hook of Lightning's is being called.
        name: As logged.
        on_step: As said.
        on_epoch: As said.

    Raises:
        ConfigurationError: A hook in which nothing may be logged, or not so.
    """
    if not hook:
        return bool(on_step), on_epoch is not False
    try:
        return _levels(hook, on_step, on_epoch)
    except MisconfigurationException as error:
        raise ConfigurationError(f"self.log({name!r}, ...) in {hook}: {error}") from error


@lru_cache
def _levels(hook: str, on_step: bool | None, on_epoch: bool | None) -> tuple[bool, bool]:
    return _FxValidator.check_logging_and_get_default_levels(hook, on_step=on_step, on_epoch=on_epoch)


class StepArguments:
    """What a step is called with: some leave the batch's number out.

    A signature takes a tenth of a small model's step to read, and is only read where it is not that of the last call.
    """

    def __init__(self) -> None:
        self._function: Any = None
        self._takes_batch_idx = True

    def of(self, step: Callable[..., Any], batch: Any, batch_idx: int, *dataloader_idx: int) -> tuple[Any, ...]:
        """Arguments for `step`.

        Args:
            step: A method of the module's, or what was set in its place.
            batch: First argument.
            batch_idx: Left out where `step` does not take it.
            dataloader_idx: Of evaluation on several loaders.
        """
        function = getattr(step, "__func__", step)
        if function is not self._function:
            self._takes_batch_idx = is_param_in_hook_signature(step, "batch_idx", min_args=2)
            self._function = function
        return (batch, batch_idx, *dataloader_idx) if self._takes_batch_idx else (batch, *dataloader_idx)


def step_result(output: Any, num_batches: int) -> tuple[Tensor | None, dict[str, Any]]:
    """The loss to go backward from, and what `on_train_batch_end` is told.

    Args:
        output: Of `training_step`.
        num_batches: To one optimizer step, by which the loss is divided.

    Raises:
        StepResultError: Neither a loss, nor a dict with one, nor None.
    """
    if num_batches == 1 and isinstance(output, Tensor):  # as below, without a division by one
        return output, {"loss": output.detach().clone()}
    try:
        result = ClosureResult.from_training_step_output(output, num_batches)
    except MisconfigurationException as error:
        raise StepResultError(
            f"training_step returned {type(output).__name__}; return the loss tensor, a dict with 'loss', or None"
        ) from error
    return result.closure_loss, {} if result.loss is None else result.asdict()


@contextmanager
def evaluating(module: L.LightningModule, stage: str) -> Iterator[None]:
    """The module in evaluation mode as its hooks make it, then each part in its mode of before."""
    modes = {name: each.training for name, each in module.named_modules()}
    getattr(module, f"on_{stage}_model_eval")()
    try:
        yield
    finally:
        for name, each in module.named_modules():
            each.training = modes.get(name, each.training)
        if is_overridden(f"on_{stage}_model_train", module):
            getattr(module, f"on_{stage}_model_train")()


def _is_ours(module: torch.nn.Module) -> bool:
    return isinstance(getattr(vars(module).get("log"), "__self__", None), TrainerSurface)
