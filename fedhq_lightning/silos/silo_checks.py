"""What `FederatedAveraging` refuses before anything is trained."""

from __future__ import annotations

import sys

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch.utils.data.distributed import DistributedSampler

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.drop_in.lane_swap import has_lazy_layers
from fedhq_lightning.drop_in.quantized_callback import QuantizedCallback
from fedhq_lightning.drop_in.trainer_parts import callbacks_of, is_rehearsal, training_loaders
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.aggregator import Aggregator
from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.silos.silo_callback import SiloCallback
from fedhq_lightning.silos.silo_strategy import SiloStrategy
from fedhq_lightning.support.lightnings import as_of, both


def refuse_settings(trainer: pl.Trainer, every_n_epochs: int, scheme: QuantScheme | None) -> Allocator | None:
    """Refuse what the Trainer's settings tell, and find the allocator.

    Raises:
        ConfigurationError: The first thing that cannot work, and what to do instead.
    """
    _refuse_older_package(trainer)
    _refuse_strategy(trainer)
    _refuse_steps(trainer)
    _refuse_companions(trainer, every_n_epochs)
    every = trainer.check_val_every_n_epoch
    if trainer.enable_validation and (every is None or every % every_n_epochs):
        raise ConfigurationError(
            f"FederatedAveraging(every_n_epochs={every_n_epochs}) with Trainer(check_val_every_n_epoch={every}): in "
            "the middle of a round there is no global model to validate; set check_val_every_n_epoch to "
            f"{every_n_epochs} or a multiple of it"
        )
    allocators = [each for each in callbacks_of(trainer) if isinstance(each, Allocator)]
    if len(allocators) > 1:
        names = ", ".join(type(each).__name__ for each in allocators)
        raise ConfigurationError(f"callbacks hold {len(allocators)} allocators ({names}); give one at most")
    if allocators and scheme is None:
        raise ConfigurationError(
            f"{type(allocators[0]).__name__} puts silos into PTQ or QAT, but FederatedAveraging has no scheme; give it "
            "one, such as FederatedAveraging(scheme='w4a8'), or leave the allocator out to train in fp"
        )
    return allocators[0] if allocators else None


def refuse_client_state(aggregator: Aggregator, pl_module: nn.Module) -> None:
    """Refuse an algorithm whose clients keep or send more than their models.

    Raises:
        ConfigurationError: Silos exchange models alone, all at once.
    """
    if isinstance(aggregator, AsynchronousAggregator):
        raise ConfigurationError(
            f"FederatedAveraging(aggregator={type(aggregator).__name__}): silos end their rounds together; take "
            "FedAvg, FedProx or FedOpt, or FederatedTrainer"
        )
    parameters = {name: value.detach() for name, value in pl_module.named_parameters()}
    if aggregator.has_client_state or aggregator.beside_up(parameters):
        raise ConfigurationError(
            f"FederatedAveraging(aggregator={type(aggregator).__name__}): its clients keep something from round to "
            "round or send it beside the model, and silos exchange models alone; take FedAvg, FedProx or FedOpt, or "
            "FederatedTrainer"
        )


def refuse_layers(pl_module: pl.LightningModule) -> None:
    """Refuse layers that silos cannot have.

    Raises:
        ConfigurationError: Lazy layers, or one that waits for the other processes in every step.
    """
    name_of_module = type(pl_module).__name__
    if has_lazy_layers(pl_module):
        raise ConfigurationError(
            f"{name_of_module} has lazy layers, which have no shape yet; call the module once on a batch before fit, "
            "or write layers with their sizes"
        )
    for name, layer in pl_module.named_modules():
        if isinstance(layer, nn.SyncBatchNorm):
            raise ConfigurationError(
                f"{name_of_module}.{name} is a SyncBatchNorm, which waits for all silos in every step, and they hold "
                "unequal numbers of batches; take nn.BatchNorm1d, 2d or 3d: FederatedAveraging averages batch "
                "statistics at the end of a round"
            )


def refuse_loaders(trainer: pl.Trainer) -> None:
    """Refuse what the training loaders tell.

    Raises:
        ConfigurationError: A loader without a length, or one that is a part of everybody's data.
    """
    for loader in training_loaders(trainer):
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            raise ConfigurationError(
                "the training loader has a DistributedSampler, which splits one silo's data over all of them; give "
                "every silo its own data (by self.trainer.global_rank), with an ordinary sampler"
            )
    if trainer.num_training_batches == float("inf"):
        raise ConfigurationError(
            "the training loader has no length, and a round needs one; take a map-style dataset, give the "
            "IterableDataset a __len__"
        )


def _refuse_older_package(trainer: pl.Trainer) -> None:
    package = as_of(trainer, pl.Trainer).__module__.partition(".")[0]
    theirs, ours = sys.modules[package].__version__, sys.modules["lightning"].__version__
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise ConfigurationError(
            f"FederatedAveraging in a Trainer of {package} {theirs}: silos need the loops of lightning {ours}; "
            f"write `import lightning.pytorch as pl` for `import {package} as pl`, or install {package}=={ours}"
        )


def _refuse_strategy(trainer: pl.Trainer) -> None:
    if not isinstance(trainer.strategy, SiloStrategy):
        raise ConfigurationError(
            f"FederatedAveraging needs Trainer(strategy='fedhq'), got {type(trainer.strategy).__name__}, under which "
            "the processes are not silos of their own; with devices=N there are N silos (importing any name from "
            "fedhq_lightning.callbacks registers 'fedhq')"
        )
    if trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigurationError(
            "Trainer(use_distributed_sampler=True), Lightning's default, would split every silo's data over all of "
            "them; set use_distributed_sampler=False"
        )


def _refuse_steps(trainer: pl.Trainer) -> None:
    # A rehearsal has the same number of batches on every silo.
    if is_rehearsal(trainer):
        return
    if trainer.max_steps not in (None, -1):
        raise ConfigurationError(
            f"Trainer(max_steps={trainer.max_steps}): silos hold unequal numbers of batches, so they would end at "
            "different epochs and wait for each other for ever; set max_epochs instead"
        )
    if trainer.min_steps:
        raise ConfigurationError(
            f"Trainer(min_steps={trainer.min_steps}): silos reach it at different epochs; set min_epochs instead"
        )
    interval = getattr(trainer, "_val_check_time_interval", None) or trainer.val_check_interval
    if interval != 1.0 or isinstance(interval, int):
        raise ConfigurationError(
            f"Trainer(val_check_interval={interval}): within an epoch every silo has a model of its own, and a "
            "different number of batches; leave it out and set check_val_every_n_epoch"
        )


def _refuse_companions(trainer: pl.Trainer, every_n_epochs: int) -> None:
    for each in callbacks_of(trainer):
        name = type(each).__name__
        if isinstance(each, QuantizedCallback) and not isinstance(each, SiloCallback):
            raise ConfigurationError(
                "FederatedAveraging together with QuantizedTraining: the former puts every silo into the lane that its "
                "allocator chose; leave QuantizedTraining out and give FederatedAveraging the scheme"
            )
        if isinstance(each, both(WeightAveraging, StochasticWeightAveraging)):
            raise ConfigurationError(
                f"FederatedAveraging together with {name}: every silo would end with an average of its own; leave "
                f"{name} out"
            )
        if isinstance(each, both(BatchSizeFinder, LearningRateFinder)):
            raise ConfigurationError(
                f"FederatedAveraging together with {name}: it trains some steps before the first round, with a result "
                "of its own on every silo; run it on one device first, and set what it finds"
            )
        if isinstance(each, both(OnExceptionCheckpoint)) or getattr(each, "save_on_exception", False):
            raise ConfigurationError(
                f"FederatedAveraging together with {name} on exceptions: a checkpoint holds the state of every silo, "
                "and one that fails is alone; save at ends of epochs (ModelCheckpoint(save_last=True))"
            )
        if not isinstance(each, both(ModelCheckpoint)):
            continue
        if each._every_n_train_steps or each._train_time_interval is not None:
            raise ConfigurationError(
                "ModelCheckpoint(every_n_train_steps=...) or (train_time_interval=...): within an epoch every silo has "
                "a model of its own; set every_n_epochs instead"
            )
        if each.save_weights_only and every_n_epochs > 1:
            raise ConfigurationError(
                f"ModelCheckpoint(save_weights_only=True) with FederatedAveraging(every_n_epochs={every_n_epochs}): in "
                "the middle of a round it would keep the weights of silo 0; leave save_weights_only out"
            )
