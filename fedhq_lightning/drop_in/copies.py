"""Copies of a module in training, on which something else can be computed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchmetrics import Metric

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme, convert, restore
from fedhq_lightning.support.lightnings import AnyModule

_COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")


def converted_copy(
    pl_module: pl.LightningModule, scheme: QuantScheme, statistics: Mapping[str, Tensor] | None = None
) -> pl.LightningModule:
    """The deployed model of a module's weights as they are now.

    Args:
        pl_module: Plain or in a lane, attached to a trainer or not; it stays as it is.
        scheme: The deployment grid.
        statistics: Batch statistics in place of the module's, by name.

    Returns:
        A copy in evaluation mode and float32, on the same device, without trainer, with its metrics reset.

    Raises:
        ConfigurationError: The module cannot be copied, or see `QuantScheme.for_layers`.
    """
    # Copied and converted outside inference mode, whose tensors torch.export refuses.
    with torch.inference_mode(False), torch.no_grad():
        copied = plain_copy(pl_module).float()
        copied.load_state_dict(dict(statistics or {}), strict=False)
        module = convert(copied, scheme)
    for part in module.modules():
        if isinstance(part, Metric):
            part.reset()
    return module


def plain_copy(pl_module: pl.LightningModule) -> pl.LightningModule:
    """A deep copy with plain layers, not compiled, without trainer; tensors that it remembers lose their graph.

    Raises:
        ConfigurationError: The module holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for part in pl_module.modules():
        attributes = vars(part)
        for name in ("_trainer", "_fabric", "_compiler_ctx"):
            if attributes.get(name) is not None:
                memo[id(attributes[name])] = None
        # Losses that a module collects over an epoch: torch copies no tensor with a graph.
        memo |= {
            id(leaf): leaf.detach().clone()
            for leaf in pytree.tree_leaves(
                {name: value for name, value in attributes.items() if name not in ("_modules", "_parameters")}
            )
            if isinstance(leaf, Tensor) and leaf.grad_fn is not None
        }
    try:
        copied = copy.deepcopy(pl_module, memo)
    except Exception as error:  # a module may hold anything, and each thing says no in its own way
        raise ConfigurationError(
            f"{type(pl_module).__name__} cannot be copied, which its quantized evaluation needs ({error}); keep what "
            "cannot be copied (files, locks, generators) out of the module's attributes"
        ) from error
    for part in copied.modules():
        # What torch.compile made refers to the original.
        vars(part).pop("_compiled_call_impl", None)
        if isinstance(part, AnyModule):
            part._metric_attributes = None
    if pl_module._compiler_ctx is not None:
        for name in _COMPILED:
            vars(copied).pop(name, None)
    restore(copied)
    return copied


class ForwardRecorder:
    """Remembers the first positional arguments with which a module's `forward` was called through `module(...)`.

    Attributes:
        arguments: They, as copies on the CPU; None before such a call.
    """

    def __init__(self, module: nn.Module) -> None:
        self.arguments: tuple[Any, ...] | None = None
        self._handle = module.register_forward_pre_hook(self._remember)

    def remove(self) -> None:
        """Remove the hook from the module."""
        self._handle.remove()

    def _remember(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        # For the time of a step, a strategy that wraps the module puts a forward of its own in place of the module's.
        is_redirected = getattr(module.forward, "__name__", "") == "wrapped_forward"
        if arguments and not is_redirected:
            with torch.inference_mode(False):
                self.arguments = pytree.tree_map_only(Tensor, _on_cpu, arguments)
            self.remove()


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def copy_of_batch(batch: Any) -> Any:
    """A batch that a module may change: tensors in nested lists, tuples, dicts and dataclasses are cloned."""
    return apply_to_collection(batch, Tensor, torch.clone, allow_frozen=True)


def as_float(batch: Any) -> Any:
    """A batch with floating-point tensors in float32; seen through as in `copy_of_batch`."""
    return apply_to_collection(batch, Tensor, _to_float, allow_frozen=True)


def _to_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state, floating-point values in float32, without what `get_extra_state` put there."""
    state: Mapping[str, Any] = module.state_dict()
    return {name: as_float(value) for name, value in state.items() if isinstance(value, Tensor)}
