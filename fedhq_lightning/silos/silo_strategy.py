"""The strategy "fedhq": every process of `lightning.Trainer` is a silo that trains on its own.

Registered with the packages of Lightning that are imported by then, when this module is imported and by `register`.
Modules are never wrapped, gradients never synchronized. What a step or a hook of one batch asks of the other processes
is answered by the silo alone, because silos hold unequal numbers of batches, and one that waited in a step that the
others do not have would wait for ever. At the ends of epochs collectives are those of DDP.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.metric import jit_distributed_available
from typing_extensions import override

from fedhq_lightning.drop_in.trainer_parts import AveragesResults, callbacks_of
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.silos.silo_callback import SiloCallback
from fedhq_lightning.silos.silo_results import average_epoch_ends, average_results
from fedhq_lightning.support.collectives import Processes, leave_group_at_exit
from fedhq_lightning.support.lightnings import as_of, both

NAME = "fedhq"
_LONGEST_WAIT = timedelta(days=1)
"""A silo may have far more batches than the one that waits for it, where DDP's processes differ by seconds."""

STEP_HOOKS = frozenset(
    {f"{stage}_step" for stage in ("training", "validation", "test", "predict")}
    | {f"on_{stage}_batch_{end}" for stage in ("train", "validation", "test", "predict") for end in ("start", "end")}
    | {"on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "batch_to_device"}
    | {"on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step", "backward"}
    | {"optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step"}
)
"""Hooks that run once a batch, and so not equally often on every silo."""


if TYPE_CHECKING:
    _Ddp = DDPStrategy
else:
    _Ddp = object


class SiloStrategy(AveragesResults, _Ddp):
    """One process a silo: gloo on CPUs, nccl on GPUs, started as DDP starts them; one device is one silo.

    To be put before the `DDPStrategy` of the Trainer's package, see `silo_strategy_on`.

    Args:
        accelerator: This and the next four are Lightning's arguments of `DDPStrategy`.
        parallel_devices: Devices of this node.
        cluster_environment: Where the processes find each other.
        checkpoint_io: How checkpoints are written.
        precision_plugin: Precision of the steps.
        process_group_backend: None chooses by device.
        timeout: How long a silo waits for the slowest at the end of a round.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta = _LONGEST_WAIT,
    ) -> None:
        super().__init__(
            accelerator,
            parallel_devices,
            cluster_environment,
            checkpoint_io,
            precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._watched: list[Metric] = []
        self._is_together = False
        self._new_loaders = 0

    @property
    def is_in_step(self) -> bool:
        """Whether a hook runs that belongs to one batch."""
        module = self.lightning_module
        return not self._is_together and module is not None and module._current_fx_name in STEP_HOOKS

    @override
    def average(self, results: Mapping[str, Any]) -> None:
        """Average over silos what was logged on an epoch; every silo calls it, whatever hook it is in.

        Args:
            results: Lightning's collection of the epoch.
        """
        before, self._is_together = self._is_together, True
        try:
            average_results(results, self.root_device)
        finally:
            self._is_together = before

    @override
    def setup_environment(self) -> None:
        """As in DDP; and the silos part before they end."""
        super().setup_environment()
        leave_group_at_exit()

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        """Place the module and its optimizers, and keep steps from waiting for other silos.

        Raises:
            ConfigurationError: A fit without `FederatedAveraging`, or with synchronized batch normalization.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            self._refuse(trainer)
            super().setup(trainer)
            _stop_each_for_itself(trainer)
            _stop_together(trainer)
        else:
            super().setup(trainer)
        average_epoch_ends(trainer, self.average)
        assert self.lightning_module is not None
        self._watch_metrics(self.lightning_module)

    @override
    def configure_ddp(self) -> None:
        """Nothing: the module stays as it is."""

    @override
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """As in DDP between batches; in a step the silo's own value."""
        if self.is_in_step:
            return tensor
        self._compare_loaders()
        return super().reduce(tensor, group, reduce_op)

    @override
    def process_dataloader(self, dataloader: object) -> object:
        """Count it: afterwards Lightning reduces once for every loader."""
        self._new_loaders += 1
        return super().process_dataloader(dataloader)

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """As in DDP between batches; in a step the silo's own decision."""
        return decision if self.is_in_step else super().reduce_boolean_decision(decision, all)

    @override
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """As in DDP between batches; in a step the silo's own tensor, as one row."""
        return tensor.unsqueeze(0) if self.is_in_step else super().all_gather(tensor, group, sync_grads)

    @override
    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """As in DDP between batches; in a step nobody waits."""
        if not self.is_in_step:
            super().barrier(*args, **kwargs)

    @override
    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """As in DDP between batches; in a step the silo's own object."""
        return obj if self.is_in_step else super().broadcast(obj, src)

    @override
    def teardown(self) -> None:
        """Leave the module as it came."""
        for metric in self._watched:
            metric.distributed_available_fn = jit_distributed_available
        self._watched = []
        super().teardown()

    def _refuse(self, trainer: pl.Trainer) -> None:
        if not any(isinstance(each, SiloCallback) for each in callbacks_of(trainer)):
            raise ConfigurationError(
                "strategy 'fedhq' without FederatedAveraging: every process would train a model of its own; add "
                "fedhq_lightning.callbacks.FederatedAveraging() to the Trainer's callbacks, or take strategy='ddp'"
            )
        if self._layer_sync is not None:
            raise ConfigurationError(
                "Trainer(sync_batchnorm=True) waits for all silos in every step, and they hold unequal numbers of "
                "batches; leave it out: FederatedAveraging averages batch statistics at the end of a round"
            )

    def _compare_loaders(self) -> None:
        """See that no silo will wait for the length of a loader that another does not have.

        Raises:
            ConfigurationError: The silos' hooks gave unequal numbers of loaders.
        """
        if not self._new_loaders:
            return
        counts, self._new_loaders = Processes(self.root_device).gather(self._new_loaders), 0
        if len(set(counts)) > 1:
            raise ConfigurationError(
                f"silos have {', '.join(map(str, counts))} loaders in one stage, and wait for each other at the end of "
                "each; give every silo as many, however few batches they have"
            )

    def _watch_metrics(self, module: nn.Module) -> None:
        """Keep torchmetrics that are computed in a step from asking the other silos."""
        for metric in module.modules():
            # One that the user has told when to ask stays as it is.
            if isinstance(metric, Metric) and metric.distributed_available_fn is jit_distributed_available:
                metric.distributed_available_fn = lambda: jit_distributed_available() and not self.is_in_step
                self._watched.append(metric)


def _stop_each_for_itself(trainer: pl.Trainer) -> None:
    """Lightning asks rank 0 before every batch whether it was told to terminate; a silo looks at itself alone."""
    connector: Any = trainer._signal_connector
    loop: Any = trainer.fit_loop.epoch_loop

    def stop_if_terminated() -> None:
        if connector.received_sigterm:
            raise as_of(trainer, SIGTERMException)

    def take_note(signum: Any, _: Any) -> None:
        if not connector.received_sigterm and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signum)
        connector.received_sigterm = True

    loop._broadcast_sigterm_tensor = stop_if_terminated
    connector._sigterm_notifier_fn = take_note


def _stop_together(trainer: pl.Trainer) -> None:
    """Where one silo asks to stop in any hook up to the end of an epoch, all stop: the others would wait for it."""
    connector: Any = trainer._logger_connector
    if "update_train_epoch_metrics" in vars(connector):
        return
    update = connector.update_train_epoch_metrics  # the last thing in an epoch

    def agree_and_update() -> None:
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)
        update()

    connector.update_train_epoch_metrics = agree_and_update


@cache
def silo_strategy_on(ddp: type[DDPStrategy]) -> type[SiloStrategy]:
    """The strategy's class for the Trainers of one package.

    Args:
        ddp: That package's.
    """
    return type("SiloStrategy", (SiloStrategy, ddp), {"__module__": __name__, "__doc__": SiloStrategy.__doc__})


def register() -> None:
    """Make "fedhq" known to the Trainers of every package of Lightning that is imported."""
    for ddp in both(DDPStrategy):
        registry = sys.modules[ddp.__module__.rpartition(".")[0]].StrategyRegistry
        registry.register(
            NAME,
            silo_strategy_on(ddp),
            description="One process a silo, without synchronizing gradients",
            override=True,
        )


register()
