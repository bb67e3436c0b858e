"""What a module remembers from one evaluation to the next: best-so-far metrics, counters, and whatever it likes."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torchmetrics import Metric

Attributes = dict[str, dict[str, Any]]
"""Values by the name of the attribute, by the name of the submodule."""

_OF_TORCH = frozenset(vars(nn.Module()))
_OF_LIGHTNING = frozenset(vars(L.LightningModule()))


def take_weights(module: nn.Module, fresh: nn.Module) -> None:
    """Give a module the parameters and buffers of another of the same layers; everything else in it stays."""
    for path, part in fresh.named_modules():
        own = module.get_submodule(path)
        for name, parameter in part._parameters.items():
            own.register_parameter(name, parameter)
        for name, buffer in part._buffers.items():
            own.register_buffer(name, buffer, persistent=name not in part._non_persistent_buffers_set)


def plain_attributes(module: nn.Module) -> Attributes:
    """Numbers, texts, tensors and collections of them that a module and its parts have as attributes, as copies."""
    found = {}
    for path, part in module.named_modules():
        ours = _OF_TORCH if isinstance(part, Metric) else _OF_TORCH | _OF_LIGHTNING
        plain = {name: value for name, value in vars(part).items() if name not in ours and _is_plain(value)}
        if plain:
            found[path] = copy.deepcopy(move_data_to_device(_detached(plain), torch.device("cpu")))
    return found


def changed(after: Attributes, before: Attributes) -> Attributes:
    """What is in `after` and was not in `before`, or was another value; for `recall`."""
    found = {}
    for path, values in after.items():
        old = before.get(path, {})
        new = {name: value for name, value in values.items() if name not in old or not _is_same(value, old[name])}
        if new:
            found[path] = new
    return found


def recall(module: L.LightningModule, kept: Attributes) -> None:
    """Set attributes in a module of the same layers."""
    for path, values in kept.items():
        vars(module.get_submodule(path)).update(move_data_to_device(copy.deepcopy(values), module.device))


def _detached(values: dict[str, Any]) -> Any:
    return apply_to_collection(values, Tensor, Tensor.detach)


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
