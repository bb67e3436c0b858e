"""Weights, buffers and metrics of a resident module, and what of it is frozen, set for the next client."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from fedhq_lightning.types import StateDict


def restore_buffers(module: L.LightningModule, template: L.LightningModule, device: torch.device) -> None:
    """Give a resident module the template's buffers, also where the last client left another tensor or none."""
    # Duplicates stay in, here and below: to find them torch hashes every part, and a Metric's hash is that of all its
    # states.
    for path, original in template.named_modules(remove_duplicate=False):
        part, absent = module.get_submodule(path), original._non_persistent_buffers_set
        for name in [each for each in part._buffers if each not in original._buffers]:
            del part._buffers[name]
        for name, buffer in original._buffers.items():
            value = None if buffer is None else buffer.to(device, copy=True)
            part.register_buffer(name, value, persistent=name not in absent)


def restore_requires_grad(module: L.LightningModule, template: L.LightningModule) -> None:
    """Freeze and thaw a resident module's parameters as the template has them, whatever the last client's fit did."""
    for name, original in template.named_parameters(remove_duplicate=False):
        module.get_parameter(name).requires_grad_(original.requires_grad)


def load_weights(module: L.LightningModule, state: StateDict) -> None:
    """Load a state in place; one without a module's frozen part where the module says so by `strict_loading`."""
    module.load_state_dict(state, strict=module.strict_loading)


def reset_metrics(module: L.LightningModule) -> None:
    """Empty the torchmetrics that the last client filled."""
    for each in module.modules():
        if isinstance(each, Metric) and not _is_as_reset(each):
            each.reset()


def _is_as_reset(metric: Metric) -> bool:
    """Whether resetting a metric would change nothing, which it takes five times as long to do as to see."""
    if type(metric).reset is not Metric.reset or metric.update_called or metric._computed is not None:
        return False
    return all(_is_same(held, metric._defaults[name]) for name, held in metric.metric_state.items())


def _is_same(held: Any, default: Any) -> bool:
    if isinstance(held, Tensor) and isinstance(default, Tensor):
        return held.is_cpu and held.dtype == default.dtype and torch.equal(held, default)
    return isinstance(held, list) and not held
