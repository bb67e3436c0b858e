"""Layers that learn their sizes from the first batch (`nn.LazyLinear` and its kin)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.types import FitOptions


def lazy_names(module: nn.Module) -> list[str]:
    """Names of the layers that have not seen a batch yet; those used twice under each name."""
    return [name for name, part in module.named_modules(remove_duplicate=False) if isinstance(part, LazyModuleMixin)]


def build_lazy_layers(
    module: L.LightningModule,
    options: FitOptions,
    batch: Callable[[], Any],
    datamodule: L.LightningDataModule | None = None,
) -> None:
    """Give lazy layers their sizes by one batch, without any other trace of it.

    The batch goes through a copy, in evaluation mode and without gradients; the layers it built are put into `module`.

    Args:
        module: Changed in place; left alone where it has no lazy layer.
        options: Only to build a `ClientTrainer`.
        batch: Gives the batch, where the module has no `example_input_array`.
        datamodule: Where it comes from, for its batch transfer hooks.
    """
    names = lazy_names(module)
    if not names:
        return
    seen = copy.deepcopy(module)
    for part in seen.modules():
        part.training = False
    trainer = ClientTrainer(seen, options, torch.device("cpu"), datamodule=datamodule)
    with torch.no_grad():
        example = seen.example_input_array
        if example is None:
            trainer.run_step(batch())
        else:
            _call(seen, example)
    trainer.detach()
    take_layers(module, seen)


def take_layers(module: nn.Module, built: nn.Module) -> None:
    """Put the layers of `built`, a copy that has seen a batch, in place of lazy ones, each once however often used."""
    taken: dict[int, nn.Module] = {}
    for name in lazy_names(module):
        original = module.get_submodule(name)
        with suppress(AttributeError):  # built only in the other, as setup does
            layer = built.get_submodule(name)
            layer.training = original.training
            module.set_submodule(name, taken.setdefault(id(original), layer))


def _call(module: nn.Module, example: Any) -> None:
    if isinstance(example, dict):
        module(**example)
    elif isinstance(example, tuple):
        module(*example)
    else:
        module(example)
