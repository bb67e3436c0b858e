"""The strategy "fedhq": every process of `lightning.Trainer` is a silo that trains on its own.

Registered with the packages of Lightning that are imported by then, when this module is imported and by `register`.
Modules are never wrapped, gradients never synchronized. What a step or a hook of one batch asks of the other processes
is answered by the silo alone, because silos hold unequal numbers of batches, and one that waited in a step that the
others do not have would wait for ever. At the ends of epochs collectives are those of DDP, and what an epoch logged is
agreed on, see `silo_results`.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from fedhq_lightning.drop_in.trainer_parts import AveragesResults, callbacks_of
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.checkpoint_file import check_whole
from fedhq_lightning.silos.batch_examples import examples_in
from fedhq_lightning.silos.silo_callback import SiloCallback
from fedhq_lightning.silos.silo_checkpoint import unreadable
from fedhq_lightning.silos.silo_connector import connect
from fedhq_lightning.silos.silo_monitors import monitored_values, refuse_own_values
from fedhq_lightning.silos.silo_results import agree
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.lightnings import as_of, both
from fedhq_lightning.support.process_group import (
    DEFAULT_SECONDS,
    leave_group_at_exit,
    start_before_launch,
    watch_group,
)
from fedhq_lightning.support.process_watch import Watch

NAME = "fedhq"
_LONGEST_WAIT = timedelta(days=1)
"""A silo may have far more batches than the one that waits for it, where DDP's processes differ by seconds."""

_LAST_HOOK = "on_train_epoch_end"

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
        process_timeout: Seconds after which a silo that does not answer, because it is stopped, killed or cut off, ends
            the others; one that trains answers.
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
        process_timeout: float = DEFAULT_SECONDS,
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
        self._watched: list[tuple[Metric, Callable[[], bool]]] = []
        self._asks: bool | None = None
        self._examples: dict[bool, Counter[int | None]] = {True: Counter(), False: Counter()}
        self._replaced_hook: tuple[pl.LightningModule, Any] | None = None
        self._new_loaders = 0
        self._process_timeout = process_timeout
        self._watch: Watch | None = None
        self.weights_only: bool | None = None

    @property
    def is_alone(self) -> bool:
        """Whether this silo answers for itself: in a hook that belongs to one batch, or as `asks` says."""
        if self._asks is not None:
            return not self._asks
        module = self.lightning_module
        return module is not None and module._current_fx_name in STEP_HOOKS

    @contextmanager
    def asks(self, *, others: bool) -> Iterator[None]:
        """Ask the other silos, or none of them, whatever hook runs."""
        before, self._asks = self._asks, others
        try:
            yield
        finally:
            self._asks = before

    @override
    def average(self, results: Any) -> None:
        """Average over silos what was logged on an epoch; every silo calls it, whatever hook it is in.

        Args:
            results: Lightning's collection of the epoch.
        """
        examples = self._examples[results.training]
        agree(results, examples, Processes(self.root_device), self.asks)
        # What follows are hooks of the epoch's end: what they log weighs as much as what they have seen.
        results.batch_size = examples[None] or None

    def count(self, results: Any, batch: Any, loaders: Sequence[Any]) -> None:
        """Take note of a batch's examples.

        Args:
            results: Lightning's collection of the epoch.
            batch: It.
            loaders: Of the stage, in case that the batch does not tell its size.
        """
        size = results.batch_size or examples_in(batch, loaders)
        self._examples[results.training].update({None: size, results.dataloader_idx: size})

    def forget_examples(self, results: Any) -> None:
        """Begin an epoch.

        Args:
            results: Lightning's collection of the epoch.
        """
        results.batch_size = None
        self._examples[results.training].clear()

    def compare_monitored(self, trainer: pl.Trainer, is_validation: bool) -> None:
        """See that callbacks which act on a monitored value are about to act alike on every silo.

        Args:
            trainer: Asked in a fit alone.
            is_validation: Whether validation has ended; else a training epoch has.

        Raises:
            ConfigurationError: A monitored value is each silo's own.
        """
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            refuse_own_values(Processes(self.root_device).gather(monitored_values(trainer, is_validation)))

    @override
    def setup_environment(self) -> None:
        """As in DDP; and the silos part before they end."""
        super().setup_environment()
        leave_group_at_exit()
        started: Any = getattr(self.launcher, "procs", [])
        self._watch = watch_group({self.global_rank + index: each for index, each in enumerate(started, start=1)})

    @override
    def _configure_launcher(self) -> None:
        """As in DDP, without the thread that kills every silo because of one, before anybody can say which."""
        super()._configure_launcher()
        if self._launcher is not None:
            start_before_launch(self._launcher)

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        """Place the module and its optimizers, and keep steps from waiting for other silos.

        Raises:
            ConfigurationError: A fit without `FederatedAveraging`, or with synchronized batch normalization.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            self._refuse(trainer)
            if self._watch is not None:
                self._watch.judge(self._process_timeout)
            super().setup(trainer)
            _stop_each_for_itself(trainer)
            self._agree_before_monitors(trainer)
        else:
            super().setup(trainer)
        # Lightning's advice to synchronize by hand, which would be followed by nothing here.
        for kind in both(PossibleUserWarning):
            warnings.filterwarnings("ignore", ".*recommended to use `self.log.*sync_dist=True.*", kind)
        connect(trainer)
        for examples in self._examples.values():
            examples.clear()
        self._watch_metrics(trainer)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """As in DDP, once the file is seen to be as it was written.

        Raises:
            ConfigurationError: It is damaged, or holds what is executed, and `weights_only=False` was not given.
        """
        self.weights_only, path = weights_only, Path(checkpoint_path)
        if path.is_file():
            with path.open("rb") as file:
                if file.read(2) == b"PK":  # else it is not of torch, but of a CheckpointIO of the user's
                    check_whole(path, file)
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise unreadable(str(checkpoint_path), error) from error

    @override
    def configure_ddp(self) -> None:
        """Nothing: the module stays as it is."""

    @override
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """As in DDP between batches; in a step the silo's own value."""
        if self.is_alone:
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
        return decision if self.is_alone else super().reduce_boolean_decision(decision, all)

    @override
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """As in DDP between batches; in a step the silo's own tensor, as one row."""
        return tensor.unsqueeze(0) if self.is_alone else super().all_gather(tensor, group, sync_grads)

    @override
    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """As in DDP between batches; in a step nobody waits."""
        if not self.is_alone:
            super().barrier(*args, **kwargs)

    @override
    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """As in DDP between batches; in a step the silo's own object."""
        return obj if self.is_alone else super().broadcast(obj, src)

    @override
    def teardown(self) -> None:
        """Leave the module as it came."""
        if self._watch is not None:
            self._watch.stand_down()
        for metric, is_available in self._watched:
            metric.distributed_available_fn = is_available
        self._watched = []
        if self._replaced_hook is not None:
            module, before = self._replaced_hook
            vars(module).pop(_LAST_HOOK, None)
            if before is not None:
                vars(module)[_LAST_HOOK] = before
            self._replaced_hook = None
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

    def _agree_before_monitors(self, trainer: pl.Trainer) -> None:
        """Have EarlyStopping and checkpoints see what the hooks of a training epoch's end log.

        Lightning calls the module's hook after those of all other callbacks and before those of these two.
        """
        module: Any = trainer.lightning_module
        hook = getattr(module, _LAST_HOOK)

        def run_and_agree() -> None:
            hook()
            self.average(trainer._results)
            for each in callbacks_of(trainer):
                if isinstance(each, SiloCallback):
                    each.on_epoch_agreed(trainer, module)
            self.compare_monitored(trainer, is_validation=False)

        self._replaced_hook = module, vars(module).get(_LAST_HOOK)
        vars(module)[_LAST_HOOK] = run_and_agree

    def _watch_metrics(self, trainer: pl.Trainer) -> None:
        """Keep torchmetrics of the module and of callbacks that are computed in a step from asking the other silos."""
        held = [value for each in callbacks_of(trainer) for value in vars(each).values()]
        modules = [each for each in (trainer.lightning_module, *held) if isinstance(each, nn.Module)]
        metrics = {id(part): part for module in modules for part in module.modules() if isinstance(part, Metric)}
        for metric in metrics.values():
            is_available = metric.distributed_available_fn
            # A function, which copies of the metric share.
            metric.distributed_available_fn = lambda asked=is_available: asked() and not self.is_alone
            self._watched.append((metric, is_available))


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
