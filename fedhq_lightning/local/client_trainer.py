"""The small trainer that each resident LightningModule sees: local fits and evaluations, without Lightning's Trainer.

Under bare Fabric `self.log` and most of `self.trainer` do not work. `ClientTrainer` stands in for the Trainer, so that
an unmodified module trains on one client as it would train in Lightning, with one process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.data.whole_batches import batches_of
from fedhq_lightning.local.data_hooks import hook_owners, lies_on
from fedhq_lightning.local.logged_values import LoggedValues, num_examples, plain
from fedhq_lightning.local.optimizers import configured_optimizer, scale_learning_rate
from fedhq_lightning.local.trainer_on_module import (
    StepArguments,
    attach,
    detach,
    evaluating,
    lightnings_log,
    logging_levels,
    step_result,
)
from fedhq_lightning.local.trainer_surface import TrainerSurface, one_process
from fedhq_lightning.support.lightnings import lightnings_own
from fedhq_lightning.types import FitOptions


class ClientTrainer(TrainerSurface):
    """Stands in for `lightning.pytorch.Trainer` on one resident module.

    Args:
        module: The resident module; its `trainer` and `log` are set on the instance, its class is left alone.
        options: What a local fit does.
        device: Where batches go.
        autocast: Context in which steps run; evaluation of an integer model runs without.
        datamodule: Where batches come from, for its batch transfer hooks; None for loaders alone.
    """

    def __init__(
        self,
        module: L.LightningModule,
        options: FitOptions,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        datamodule: L.LightningDataModule | None = None,
    ) -> None:
        self.lightning_module = self.model = module
        self.options = options
        self.device = device
        self.max_epochs = -1 if options.local_epochs is None else options.local_epochs
        self.max_steps = options.local_steps or -1
        self.gradient_clip_val = options.gradient_clip_val
        self.accumulate_grad_batches = options.accumulate_grad_batches
        self.optimizers: list[Optimizer] = []
        self.train_dataloader: Any = None
        self.lr_scheduler_configs: list[LRSchedulerConfig] = []
        self.strategy = one_process(device, self.optimizers)
        self.precision_plugin = SimpleNamespace(clip_gradients=self._clip_gradients)
        self.should_stop = self.is_last_batch = False
        self.current_epoch = self.global_step = self.num_training_batches = 0
        self.estimated_stepping_batches: float = 0
        self._autocast = autocast
        self._datamodule = None if datamodule is None else unwrapped(datamodule)
        self._owners = hook_owners(module, self._datamodule)
        self._lightnings = lightnings_own(module)
        self._arguments = StepArguments()
        self._values, self._metrics = LoggedValues(), dict[str, Tensor]()
        self._current_batch: Any = None
        self._batch_size: int | None = None
        self._output: Any = None
        self._dataloader_idx: int | None = None
        self._hook, self._had_loss = "", False
        self._most_steps: int | None = None
        vars(self).update(lightnings_log(self.log))
        attach(module, self, self.log)

    def detach(self) -> None:
        """Leave the module as if no trainer had been there."""
        detach(self.lightning_module)

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What was logged, by name: the newest value, and after an epoch the epoch's."""
        self._metrics.update(self._values.take_last())
        return self._metrics

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """What was logged, which is what `callback_metrics` holds too."""
        return self.callback_metrics

    def fit(
        self,
        loader: Sequence[Any] | DataLoader[Any],
        learning_rate_scale: float = 1.0,
        before_step: Callable[[Optimizer], None] | None = None,
        work: float = 1.0,
        after_step: Callable[[], None] | None = None,
    ) -> tuple[int, dict[str, float]]:
        """Train the module on one client.

        Args:
            loader: The client's batches. Without any (`drop_last` on a small client) nothing is done at all.
            learning_rate_scale: Factor on every learning rate in this fit.
            before_step: Called with the optimizer once a step, before clipping, for client-side gradient terms.
            work: Share of its optimizer steps that are taken, see `FitOptions.num_steps`.
            after_step: Called after every optimizer step.

        Returns:
            Optimizer steps taken, none where no batch had a loss, and what was logged: of every name the value of the
            last local epoch that logged it.

        Raises:
            ConfigurationError: The module wants manual optimization or several optimizers.
        """
        if not len(loader):
            return 0, {}
        module, self.train_dataloader = self.lightning_module, loader
        self._start_fit(len(loader), work)
        optimizer, self.lr_scheduler_configs = configured_optimizer(module)
        self.optimizers[:] = [optimizer]
        scale_learning_rate(optimizer, self.lr_scheduler_configs, learning_rate_scale)
        metrics: dict[str, float] = {}
        self._call("on_fit_start")
        self._call("on_train_start")
        while not self._fit_is_over():
            steps_before = self.global_step
            self._call("on_train_epoch_start")
            complete = self._run_epoch(loader, optimizer, before_step, after_step)
            self._reduce_so_far()
            self._call("on_train_epoch_end")
            metrics |= self._finish_epoch()
            if complete:
                self._step_schedulers("epoch", self.current_epoch + 1, on_plateau=True)
            self.current_epoch += 1
            if self.global_step == steps_before and self._most_steps is not None:
                break  # it would be so in every other epoch too, and the steps never be done
        self._call("on_train_end")
        self._call("on_fit_end")
        self.training = False
        optimizer.zero_grad(set_to_none=True)
        self.optimizers.clear()
        self.train_dataloader = None
        return self.global_step if self._had_loss else 0, metrics

    def evaluate(self, loaders: Iterable[Any], stage: str = "validation") -> dict[str, float]:
        """Run the module's validation or test steps over all batches.

        Args:
            loaders: One or more loaders; names logged from several get Lightning's `/dataloader_idx_N`.
            stage: "validation" or "test".

        Returns:
            What was logged, reduced over each loader, in the order of logging.
        """
        module, loaders = self.lightning_module, list(loaders)
        step = getattr(module, f"{stage}_step")
        self.validating, self.testing, self._values = stage == "validation", stage == "test", LoggedValues()
        with evaluating(module, stage), torch.no_grad():
            self._call(f"on_{stage}_start")
            self._call(f"on_{stage}_epoch_start")
            for index, loader in enumerate(loaders):
                self._dataloader_idx = index if len(loaders) > 1 else None
                for batch_idx, batch in enumerate(batches_of(loader)):
                    indices = (batch_idx, index) if len(loaders) > 1 else (batch_idx,)
                    batch = self.to_device(batch, index)
                    self._call(f"on_{stage}_batch_start", batch, *indices)
                    with self._autocast():
                        output = self._call(f"{stage}_step", *self._arguments.of(step, batch, *indices))
                    self._call(f"on_{stage}_batch_end", output, batch, *indices)
                if len(loaders) > 1:
                    self._values.end_loader()
            self._dataloader_idx = None
            self._reduce_so_far()
            self._call(f"on_{stage}_epoch_end")
            self._call(f"on_{stage}_end")
        self.validating = self.testing = False
        return self._finish_epoch()

    def run_step(self, batch: Any) -> Tensor | None:
        """One training step of the module without an optimizer step or anything logged.

        Returns:
            Its loss over the number of batches to an optimizer step, or None where the step gave none.
        """
        self._values = LoggedValues()
        _, outputs = self._training_step(self.to_device(batch, 0), 0)
        self._values = LoggedValues()
        return outputs.get("loss")

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """`LightningModule.log` on this trainer; a client is one process, so nothing is ever synchronized."""
        if self._dataloader_idx is not None and add_dataloader_idx:
            name = f"{name}/dataloader_idx_{self._dataloader_idx}"
        both = all(logging_levels(self._hook, name, on_step, on_epoch))
        if not batch_size and self._batch_size is None:
            self._batch_size = num_examples(self._current_batch)
        self._values.add(name, value, batch_size or self._batch_size or 1, reduce_fx, both, self._hook)

    def _start_fit(self, num_batches: int, work: float) -> None:
        self._values, self._metrics = LoggedValues(), {}
        self.current_epoch = self.global_step = 0
        self.should_stop, self.training, self._had_loss = False, True, False
        self.num_training_batches = num_batches
        self.is_last_batch = False
        # Schedulers and the like see the whole fit, of which a share is a beginning.
        self.estimated_stepping_batches = self.options.num_steps(num_batches)
        self._most_steps = self.options.local_steps if work >= 1 else self.options.num_steps(num_batches, work)

    def _fit_is_over(self) -> bool:
        if self.should_stop:
            return True
        if self._most_steps is not None:
            return self.global_step >= self._most_steps
        return self.current_epoch >= (self.options.local_epochs or 0)

    def _run_epoch(
        self,
        loader: Iterable[Any],
        optimizer: Optimizer,
        before_step: Callable[[Optimizer], None] | None,
        after_step: Callable[[], None] | None,
    ) -> bool:
        """Train on the loader's batches, in the order of Lightning's loop; whether the epoch was not cut short."""
        every = self.accumulate_grad_batches
        for batch_idx, batch in enumerate(batches_of(loader)):
            count = batch_idx + 1
            batch = self.to_device(batch, 0)
            if self._call("on_train_batch_start", batch, batch_idx) == -1:
                self._step_schedulers("epoch", self.current_epoch + 1)
                return True
            first, complete = batch_idx % every == 0, count == self.num_training_batches
            self.is_last_batch = complete
            last = count % every == 0 or complete
            closure = partial(self._closure, batch, batch_idx, optimizer, first, before_step if last else None, last)
            if last:
                self._call("optimizer_step", self.current_epoch, batch_idx, optimizer, closure)
                if after_step is not None:
                    after_step()
                self.global_step += 1
                self._step_schedulers("step", count)
            else:
                closure()
            if complete:
                self._step_schedulers("epoch", self.current_epoch + 1)
            self._call("on_train_batch_end", self._output, batch, batch_idx)
            if last:
                self._step_schedulers("step", count, on_plateau=True)
            if self.should_stop or self._most_steps == self.global_step:
                return complete
        return True

    def _closure(
        self,
        batch: Any,
        batch_idx: int,
        optimizer: Optimizer,
        first: bool,
        before_step: Callable[[Optimizer], None] | None,
        last: bool,
    ) -> Tensor | None:
        """Forward and backward of one batch, in the order of Lightning's closure."""
        loss, self._output = self._training_step(batch, batch_idx)
        if first:
            self._call("on_before_zero_grad", optimizer)
            self._call("optimizer_zero_grad", self.current_epoch, batch_idx, optimizer)
        if loss is not None:
            self._had_loss = True
            self._call("on_before_backward", loss)
            self._call("backward", loss)
            self._call("on_after_backward")
        if last:
            if before_step is not None:
                before_step(optimizer)
            self._call("on_before_optimizer_step", optimizer)
            if self.gradient_clip_val or not self._is_lightnings("configure_gradient_clipping", "clip_gradients"):
                self._call("configure_gradient_clipping", optimizer, self.gradient_clip_val, None)
        return loss

    def _training_step(self, batch: Any, batch_idx: int) -> tuple[Tensor | None, dict[str, Any]]:
        step = self.lightning_module.training_step
        with self._autocast():
            output = self._call("training_step", *self._arguments.of(step, batch, batch_idx))
        return step_result(output, self.accumulate_grad_batches)

    def to_device(self, batch: Any, dataloader_idx: int) -> Any:
        """A batch where the module is, as the hooks leave it; what is logged next weighs as many examples."""
        if self._datamodule is not None:
            self._datamodule.trainer = self  # type: ignore[assignment]  # lanes and evaluations take turns
        batch = self._call("on_before_batch_transfer", batch, dataloader_idx)
        if lies_on(self.device, batch) and self._is_lightnings("transfer_batch_to_device"):
            batch = type(batch)(batch)
        else:
            batch = self._call("transfer_batch_to_device", batch, self.device, dataloader_idx)
        batch = self._call("on_after_batch_transfer", batch, dataloader_idx)
        self._current_batch = batch
        self._batch_size = None
        return batch

    def _reduce_so_far(self) -> None:
        """What hooks at the end of an epoch find in `callback_metrics` is the epoch's, not the last batch's."""
        self.callback_metrics.update(self._values.so_far())

    def _finish_epoch(self) -> dict[str, float]:
        values = self._values.finish()
        self.callback_metrics.update(values)
        return plain(values)

    def _step_schedulers(self, interval: str, count: int, on_plateau: bool = False) -> None:
        for config in self.lr_scheduler_configs:
            if config.interval != interval or count % config.frequency or config.reduce_on_plateau != on_plateau:
                continue
            metric = None
            if config.reduce_on_plateau:
                metric = self.callback_metrics.get(str(config.monitor))
                if metric is None:  # whether anybody logs it is asked before round 1
                    continue
            self._call("lr_scheduler_step", config.scheduler, metric)

    def _call(self, hook: str, *arguments: Any) -> Any:
        """Call a hook of the module's, or of the data module's; it then is the one that logs."""
        before, self._hook = self._hook, hook
        try:
            return getattr(self._owners.get(hook, self.lightning_module), hook)(*arguments)
        finally:
            self._hook = before

    def _is_lightnings(self, *hooks: str) -> bool:
        """Whether neither the module nor the data module has its own of these."""
        module = self.lightning_module
        return all(
            getattr(type(module), hook) is getattr(self._lightnings, hook)
            and hook not in vars(module)
            and hook not in self._owners
            for hook in hooks
        )

    def _clip_gradients(self, optimizer: Optimizer, clip_val: float, algorithm: Any = None) -> None:
        if not clip_val:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if getattr(algorithm, "value", algorithm) == "value":
            torch.nn.utils.clip_grad_value_(parameters, clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(parameters, clip_val)
