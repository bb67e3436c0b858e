"""What a module remembers from one evaluation to the next: best-so-far metrics, counters, and whatever it likes."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torchmetrics import Metric

_OF_TORCH = frozenset(vars(nn.Module()))
_OF_LIGHTNING = frozenset(vars(L.LightningModule())) - {"training"}


def take_weights(module: nn.Module, fresh: nn.Module) -> None:
    """Give a module the parameters and buffers of another of the same layers; everything else in it stays."""
    for path, part in fresh.named_modules():
        own = module.get_submodule(path)
        for name, parameter in part._parameters.items():
            own.register_parameter(name, parameter)
        for name, buffer in part._buffers.items():
            own.register_buffer(name, buffer, persistent=name not in part._non_persistent_buffers_set)


def remembered(module: nn.Module, fresh: nn.Module) -> dict[str, dict[str, Any]]:
    """Numbers, texts, tensors and collections of them that a module has as attributes, and another has otherwise.

    Args:
        module: After an evaluation.
        fresh: The same module without one.

    Returns:
        By the name of the submodule, values by the name of the attribute; what `recall` takes.
    """
    found = {}
    for path, part in module.named_modules():
        before = vars(fresh.get_submodule(path))
        ours = _OF_TORCH if isinstance(part, Metric) else _OF_TORCH | _OF_LIGHTNING
        changed = {
            name: value
            for name, value in vars(part).items()
            if name not in ours and _is_plain(value) and not (name in before and _is_same(value, before[name]))
        }
        if changed:
            found[path] = copy.deepcopy(move_data_to_device(changed, torch.device("cpu")))
    return found


def recall(module: L.LightningModule, kept: dict[str, dict[str, Any]]) -> None:
    """Set what `remembered` gave, in a module of the same layers."""
    for path, values in kept.items():
        vars(module.get_submodule(path)).update(move_data_to_device(copy.deepcopy(values), module.device))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str) or type(value) is Tensor


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        return isinstance(value, Tensor) and isinstance(other, Tensor) and _same_tensor(value, other)
    if type(value) is not type(other):
        return False
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_is_same(each, other[key]) for key, each in value.items())
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(map(_is_same, value, other))
    return bool(value == other)


def _same_tensor(value: Tensor, other: Tensor) -> bool:
    return value.shape == other.shape and value.dtype == other.dtype and torch.equal(value, other.to(value.device))
