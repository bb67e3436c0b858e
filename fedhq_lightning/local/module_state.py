"""Weights, buffers and metrics of a resident module, and what of it is frozen, set for the next client."""

from __future__ import annotations

import lightning as L
import torch
from torchmetrics import Metric

from fedhq_lightning.types import StateDict


def restore_buffers(module: L.LightningModule, template: L.LightningModule, device: torch.device) -> None:
    """Give a resident module the template's buffers, also where the last client left another tensor or none."""
    # Duplicates stay in, here and below: to find them torch hashes every part, and a Metric's hash is that of all its
    # states.
    for path, original in template.named_modules(remove_duplicate=False):
        if not original._buffers:
            continue
        part, absent = module.get_submodule(path), original._non_persistent_buffers_set
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
        if isinstance(each, Metric):
            each.reset()
