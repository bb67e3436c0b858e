"""The template: a copy of the user's module with its layers built, from which every resident module is copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch.nn.parameter import is_lazy

from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.local.lazy_layers import build_lazy_layers, lazy_names, take_layers
from fedhq_lightning.local.module_checks import copied, keep_batches_apart, run_eagerly
from fedhq_lightning.support.views import users_view
from fedhq_lightning.types import FitOptions


def set_up_template(
    module: L.LightningModule,
    options: FitOptions,
    batch: Callable[[], Any] | None = None,
    datamodule: L.LightningDataModule | None = None,
) -> L.LightningModule:
    """A copy of the user's module with its layers built.

    Args:
        module: The user's.
        options: Length of a local fit.
        batch: Gives a batch, by which lazy layers without `example_input_array` find their sizes.
        datamodule: Where it comes from, for its batch transfer hooks; `setup` and `configure_model` find it on the
            trainer.

    Raises:
        ConfigurationError: Layers whose shapes are not known yet, or parameters that are not finite.
    """
    template = copied(module)
    build_layers(template, options, datamodule)
    run_eagerly(template)
    keep_batches_apart(template)
    if batch is not None or template.example_input_array is not None:
        build_lazy_layers(template, options, batch or dict, datamodule)
    lazy = [name for name, parameter in template.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ConfigurationError(
            f"{type(module).__name__}: {', '.join(lazy)} belong to lazy layers, which have no shape yet; call the "
            "module once on a batch before fit, or write layers with their sizes"
        )
    broken = [name for name, parameter in template.named_parameters() if not bool(parameter.isfinite().all())]
    if broken:
        raise ConfigurationError(
            f"{type(module).__name__}: {', '.join(broken)} hold values that are not finite before training; "
            "initialize or load them"
        )
    return template


def build_layers(
    module: L.LightningModule, options: FitOptions, datamodule: L.LightningDataModule | None = None
) -> None:
    """Lightning's two hooks that build layers, in its order.

    They find the data module on the trainer, as in Lightning; no step or other hook does, for a client has its own data
    alone.
    """
    trainer = ClientTrainer(module, options, torch.device("cpu"))
    if datamodule is not None:
        vars(trainer)["datamodule"] = unwrapped(datamodule)
    module.setup("fit")
    module.configure_model()
    trainer.detach()


def build_like(
    module: L.LightningModule, template: L.LightningModule, options: FitOptions, datamodule: L.LightningDataModule
) -> None:
    """Make the layers of the user's module that the template has and it has not, to hold the run's weights."""
    if module.state_dict().keys() != users_view(template.state_dict()).keys():
        build_layers(module, options, datamodule)
    if lazy_names(module):
        take_layers(module, copied(template))
