"""What a module finds on `self.trainer` during a local fit, beside what changes while it trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.silent_logger import SilentLogger


class NoSuchAttributeError(ConfigurationError, AttributeError):
    """A module asks for more of Lightning's Trainer than a local fit has; `hasattr` and `getattr` work as ever."""


class TrainerSurface:
    """The part of Lightning's Trainer that is the same for every client: one process, no callbacks, no checkpoints.

    Everything else that a module asks for is refused by name.
    """

    is_global_zero = True
    global_rank = local_rank = node_rank = 0
    world_size = num_nodes = num_devices = 1
    device_ids = (0,)
    sanity_checking = predicting = barebones = fast_dev_run = interrupted = False
    progress_bar_callback = checkpoint_callback = early_stopping_callback = None
    callbacks = checkpoint_callbacks = early_stopping_callbacks = ()
    gradient_clip_algorithm = None
    log_every_n_steps = check_val_every_n_epoch = 1
    limit_train_batches = limit_val_batches = limit_test_batches = val_check_interval = 1.0
    overfit_batches = 0.0
    num_sanity_val_steps = 0
    max_time = min_epochs = min_steps = ckpt_path = log_dir = None
    profiler = PassThroughProfiler()
    logger = SilentLogger()
    loggers = (logger,)

    training = validating = testing = False

    @property
    def evaluating(self) -> bool:
        """Whether a validation or test step is being run."""
        return self.validating or self.testing

    @property
    def state(self) -> TrainerState:
        """As Lightning's, in a fit."""
        if self.testing:
            return TrainerState(TrainerStatus.RUNNING, TrainerFn.TESTING, RunningStage.TESTING)
        stage = RunningStage.VALIDATING if self.validating else RunningStage.TRAINING
        return TrainerState(TrainerStatus.RUNNING, TrainerFn.FITTING, stage)

    def __getattr__(self, name: str) -> Any:
        """Refuse what a client's trainer does not have."""
        if name.startswith("__"):
            raise AttributeError(name)
        hint = "hand what the module needs of the data to it as an argument"
        if name != "datamodule":
            hint = f"it has {', '.join(sorted(each for each in dir(self) if not each.startswith('_')))}"
        raise NoSuchAttributeError(f"a client's trainer has no {name!r}; {hint}")


def one_process(device: torch.device, optimizers: list[Any]) -> SimpleNamespace:
    """A strategy of one process, where nothing is ever exchanged."""
    return SimpleNamespace(
        all_gather=lambda tensor, **_: tensor,
        reduce=lambda tensor, *_, **__: tensor,
        broadcast=lambda value, *_, **__: value,
        barrier=lambda *_, **__: None,
        reduce_boolean_decision=lambda decision, **_: decision,
        _lightning_optimizers=optimizers,
        root_device=device,
        is_global_zero=True,
        global_rank=0,
        local_rank=0,
        world_size=1,
    )
