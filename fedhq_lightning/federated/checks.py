"""What can be known to be wrong before the first round, and the one batch that tells."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.deploy.pixels import Pixels
from fedhq_lightning.devices.roofline import LayerCost, measure_costs
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.federated.client_evaluation import figure_names
from fedhq_lightning.federated.clients import num_examples
from fedhq_lightning.federated.not_finite import column_names, odd_values
from fedhq_lightning.federated.update_checks import is_finite
from fedhq_lightning.local.batch_statistics import tracked_layers
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.local.evaluation import as_loaders
from fedhq_lightning.support.lightnings import is_overridden
from fedhq_lightning.support.notes import noted
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.support.tensors import same_values
from fedhq_lightning.types import ClientId, FitOptions


@dataclass(frozen=True)
class Probe:
    """What one training batch and one held-out batch told.

    Attributes:
        costs: Layers of the model.
        batch_size: Examples in the training batch.
        train_names: What `training_step` logs.
        validation_names: What `validation_step` logs; empty without one.
        example_args: Arguments of the module's own `forward` in validation, or None if it was not called with any.
        drop_last: Whether the training loader drops a last batch that is not full.
        batch_norm: Name of a layer that cannot train on one example, or None.
        frozen: Names in the state of the parameters that no local fit trains.
        fixed: Those of them that no hook changes either, as the average of another network's weights would.
        batch_norms: Layers whose statistics training moves, by their first names, with all names of each.
        client_names: What `validation_step` logs on what a client holds back; empty where no client evaluates.
        optimizer_settings: Of the optimizer's first group, but its parameters; empty where the step had no loss.
    """

    costs: list[LayerCost]
    batch_size: int
    train_names: list[str]
    validation_names: list[str]
    example_args: tuple[Any, ...] | None
    drop_last: bool = False
    batch_norm: str | None = None
    frozen: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    batch_norms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    client_names: Sequence[str] = ()
    optimizer_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def held_out_names(self) -> list[str]:
        """What may be watched of held-out data, the server's first."""
        return [*self.validation_names, *figure_names(self.client_names)]


def probe(
    template: L.LightningModule,
    datamodule: FederatedDataModule,
    client_id: ClientId,
    options: FitOptions,
    quantized: Mapping[str, bool],
    autocast: Callable[[], AbstractContextManager[Any]],
    held_back: Sequence[Any] = (),
) -> Probe:
    """Take one training step on a batch of one client, and evaluate one held-out batch, on a copy of the module.

    Where parameters are frozen it takes two, if the client has as many, to see whether a hook changes them.

    Args:
        template: The user's module, set up.
        datamodule: Gives the batches.
        client_id: A client with a batch.
        options: Length of a local fit.
        quantized: Layers that the scheme quantizes, and whether it quantizes their activations too.
        autocast: Context of the steps.
        held_back: Loaders of a batch that a client evaluates on; none where no client does.

    Raises:
        ConfigurationError: Manual optimization, several optimizers, no loss, a scheduler that monitors what nobody
            logs, a held-out loader without batches, batches too small for BatchNorm, layers made in a step or hook.
    """
    module = copy.deepcopy(template)
    trainer = ClientTrainer(module, options, torch.device("cpu"), autocast, datamodule)
    batch, step, costs = datamodule.calibration_batch(client_id), module.training_step, list[LayerCost]()
    loader = datamodule.train_dataloader(client_id)
    batch_size = _batch_size(batch, loader, num_examples(datamodule, client_id))
    batch_norms = _BatchNormWatch(module, batch_size)

    @wraps(step)
    def measured_step(*arguments: Any) -> Any:
        if costs:
            trainer.should_stop = True
            return step(*arguments)
        outputs: list[Any] = []
        costs[:] = measure_costs(lambda: outputs.append(step(*arguments)), module, quantized)
        if outputs[0] is None:
            raise ConfigurationError("training_step returned None for the first batch; return a loss tensor")
        trainer.should_stop = not _frozen(template)
        return outputs[0]

    module.training_step = measured_step  # type: ignore[method-assign]  # on this copy only
    optimizer_settings: dict[str, Any] = {}

    def note_settings(optimizer: Optimizer) -> None:
        group = optimizer.param_groups[0]
        optimizer_settings.update({name: value for name, value in group.items() if name != "params"})

    _, logged = trainer.fit(_OneBatch(loader, batch), before_step=note_settings)
    train_names, schedulers = list(logged), trainer.lr_scheduler_configs
    if not is_finite(dict(module.named_parameters())):
        odd = odd_values([batch], column_names(datamodule))
        why = odd.words if odd else "its values are finite: look at the loss and the learning rate"
        rank_zero_warn(
            f"client {client_id}: one step on its first batch makes the weights no finite numbers, so its updates will "
            f"not count; {why}"
        )
    # What a module thaws when a fit begins is trained.
    frozen = _frozen(template) & _frozen(module)
    fixed = frozenset(name for name in frozen if same_values(template.get_parameter(name), module.get_parameter(name)))
    validation_names, example_args = [], None
    loaders = validation_loaders(template, datamodule)
    if loaders:
        recorder = ForwardRecorder(module)
        validation_names = list(trainer.evaluate([_first_batch(loader) for loader in loaders]))
        example_args = recorder.arguments
    with noted("while validation_step was tried on what a client holds back; evaluate_clients: false leaves that out"):
        client_names = list(trainer.evaluate(held_back)) if held_back else []
    _check_monitors(schedulers, train_names, validation_names)
    # A buffer may be replaced; one that did not travel before is the client's own business.
    known = {*template.state_dict(), *(name for name, _ in template.named_buffers())}
    late = [name for name in module.state_dict() if name not in known]
    if late:
        raise ConfigurationError(
            f"{type(template).__name__} makes {', '.join(late[:3])} while it runs, so the server's model has no such "
            "state; make layers and buffers in __init__, setup or configure_model, or a buffer with persistent=False"
        )
    return Probe(
        costs,
        batch_size,
        train_names,
        validation_names,
        example_args,
        drop_last=bool(getattr(getattr(loader, "batch_sampler", None), "drop_last", False)),
        batch_norm=batch_norms.name,
        frozen=frozen,
        fixed=fixed,
        batch_norms={name: others for name, others in tracked_layers(module).items() if name in batch_norms.training},
        client_names=client_names,
        optimizer_settings=optimizer_settings,
    )


def validation_loaders(template: L.LightningModule, datamodule: FederatedDataModule) -> list[Any]:
    """The held-out loaders, or none where the module has no `validation_step`."""
    if not is_overridden("validation_step", template):
        return []
    return as_loaders(datamodule.val_dataloader())


def resolve_monitor(monitor: str | None, found: Probe) -> str | None:
    """The monitored name: as asked, else the first that validation logs, else the first that training logs.

    Raises:
        ConfigurationError: Nobody logs what was asked for, or only training does where there is validation.
    """
    names = found.held_out_names or found.train_names
    if monitor is None:
        return names[0] if names else None
    if monitor not in names and monitor in found.train_names:
        raise ConfigurationError(
            f"trainer.monitor {monitor!r}: logged in training only, but the best round is chosen on held-out data; "
            f"validation logs {_listed(names)}"
        )
    if monitor not in names:
        raise ConfigurationError(
            f"trainer.monitor {monitor!r}: nobody logs it; logged: {_listed(names)}{nearest(monitor, names)}"
        )
    return monitor


def _first_batch(loader: Any) -> list[Any]:
    for batch in loader:
        return [batch]
    raise ConfigurationError("val_dataloader gives no batch; it needs held-out examples, or no validation_step")


def _batch_size(batch: Any, loader: Any, examples: int) -> int:
    """Examples that the client's loader puts into a batch; where it does not tell, those in this one."""
    size = getattr(loader, "batch_size", None)
    if isinstance(size, int):
        return min(size, examples)
    with libraries_quiet(noise=["Trying to infer the `batch_size`"]):  # the advice is about self.log
        try:
            return extract_batch_size(batch)
        except MisconfigurationException:
            return min(math.ceil(examples / len(loader)), examples)


def _check_monitors(
    schedulers: Sequence[LRSchedulerConfig], train_names: Sequence[str], validation_names: Sequence[str]
) -> None:
    """Refuse a scheduler that waits for what nobody logs; say it of one that waits for validation."""
    for config in schedulers:
        if not (config.reduce_on_plateau and config.strict) or config.monitor in train_names:
            continue
        kind = type(config.scheduler).__name__
        if config.monitor not in validation_names:
            raise ConfigurationError(
                f"the scheduler ({kind}) monitors {config.monitor!r}, which a local fit does not log; it logs "
                f"{_listed(train_names)}; log it in training_step or take another scheduler"
            )
        rank_zero_warn(
            f"the scheduler ({kind}) monitors {config.monitor!r}, which validation logs, and clients do not validate: "
            "in a local fit it leaves the learning rate alone; trainer.round_lr changes it over rounds"
        )


def _frozen(module: torch.nn.Module) -> frozenset[str]:
    parameters = module.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in parameters if not parameter.requires_grad)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"


def check_export_inputs(asked: str, datamodule: FederatedDataModule, example_args: tuple[Any, ...] | None) -> None:
    """Refuse a deployed model whose files shall take pixels of which the data do not tell how they become inputs.

    Args:
        asked: `export_inputs`.
        datamodule: The clients' data.
        example_args: Arguments of the module's `forward` in validation.

    Raises:
        ConfigurationError: The data tell no normalization, or another than what `forward` takes has.
    """
    try:
        Pixels.told_by(datamodule.model_inputs()).check(example_args)
    except ConfigurationError as error:
        kind = type(unwrapped(datamodule)).__name__
        raise ConfigurationError(
            f"export_inputs {asked!r}, with the data of {kind}: {error}; mend that, or leave export_inputs out"
        ) from error


class ForwardRecorder:
    """Remembers the first positional arguments with which a module's `forward` was called through `module(...)`."""

    def __init__(self, module: L.LightningModule) -> None:
        self.arguments: tuple[Any, ...] | None = None
        module.register_forward_pre_hook(self._remember)

    def _remember(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        # A call by keywords only shows nothing by which to export.
        if self.arguments is None and arguments:
            self.arguments = arguments


class _OneBatch(Sequence[Any]):
    """The loader of a client, but for giving its first batch again and again."""

    def __init__(self, loader: Any, batch: Any) -> None:
        self._loader = loader
        self._batch = batch

    def __len__(self) -> int:
        return len(self._loader)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        return self._batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _BatchNormWatch:
    """Finds a layer that, in training, takes its statistics from one value an example.

    Attributes:
        name: The first such layer's, or None.
        training: Names of all layers that ran in training mode.
    """

    def __init__(self, module: L.LightningModule, batch_size: int) -> None:
        self.name: str | None = None
        self.training = set[str]()
        self._batch_size = batch_size
        for name, each in module.named_modules():
            if isinstance(each, _BatchNorm):
                each.register_forward_pre_hook(partial(self._look, name))

    def _look(self, name: str, layer: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if not layer.training or not arguments:
            return
        self.training.add(name)
        values_per_channel = arguments[0].numel() // arguments[0].shape[1]
        if values_per_channel == 1:
            raise ConfigurationError(
                f"{name} ({type(layer).__name__}) cannot train on batches of one example; take a larger batch_size"
            )
        if values_per_channel <= self._batch_size:
            self.name = self.name or name
