"""Runs modules that nobody prepared, and looks for what was left on them."""

import math
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import same_bits, trainer
from ..trainer.runs import records

# What is said of modules on the way; test_refuses.py asks for what is ours.
LEFT_OUT = [
    pytest.mark.filterwarnings("ignore:Attribute 'net' is an instance of `nn.Module`"),  # Lightning's
    pytest.mark.filterwarnings("ignore:.*configure_callbacks"),
    pytest.mark.filterwarnings("ignore:the scheduler"),
    pytest.mark.filterwarnings("ignore:.*is wrapped by torch.compile"),
]
MODES = {0: "fp", 1: "ptq", 2: "qat"}


def run(module: L.LightningModule, data: FederatedDataModule, **settings: Any) -> FederatedTrainer:
    """One round of an fp, a ptq and a qat client on the grid w4a8, edges too."""
    defaults: dict[str, Any] = {"max_rounds": 1, "scheme": "w4a8", "callbacks": FixedAllocator(dict(MODES))}
    there = trainer(**(defaults | settings))
    there.fit(module, data)
    return there


def traces(module: nn.Module) -> dict[str, Any]:
    """What must be the same before and after: attributes, types, hooks and settings of each part, not its weights."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key in ("_parameters", "_buffers", "_modules"):
                value = sorted(value)
            elif key.endswith("_hooks"):
                value = len(value)
            found[f"{name}: {key}"] = _shown(value)
        found[f"{name}: class"] = f"{type(part).__module__}.{type(part).__qualname__}"
        found[f"{name}: members"] = sorted(set(vars(type(part))) - {"__slotnames__"})  # a cache of Python's own
    for name, parameter in module.named_parameters():
        found[f"{name}: trains"] = (parameter.requires_grad, parameter.dtype, parameter.grad is None)
    return found


def _shown(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ("tensor", value.shape, value.dtype)
    if isinstance(value, list | tuple | set):
        return [_shown(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _shown(each) for name, each in value.items()}
    return value if isinstance(value, str | int | bool | None) else type(value).__qualname__


def assert_ran(
    there: FederatedTrainer,
    module: L.LightningModule,
    before: dict[str, Any],
    exports: bool | None,
    builds: bool = False,
) -> None:
    """One client of each mode took part, the model was deployed, its metric reported, and the module is left alone."""
    summary = there.summary
    assert summary["mode_counts"] == {"fp": 1, "ptq": 1, "qat": 1}
    assert summary["quarantined"] == 0
    assert all(client.status == "ok" and client.num_steps for client in records(there)[1].clients)
    logs_in_validation = any(name.startswith("fp/") for name in records(there)[1].metrics)
    if logs_in_validation:
        assert math.isfinite(summary["metric_fp"])
        assert math.isfinite(summary["metric_quantized"])
    else:
        assert summary["metric_quantized"] is None
    if exports is not None:
        assert summary["export"] == ("model.pt2" if exports else "packed"), summary["export_reason"]
    model = "model.pt2" if summary["export"] == "model.pt2" else "model.safetensors"
    assert (there.run_dir / "model" / model).exists()
    weights = load_file(there.run_dir / "model" / "weights.safetensors")
    assert same_bits({name: value.detach() for name, value in module.state_dict().items()}, weights)
    assert module._trainer is None
    after = traces(module)
    left = {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}
    if builds:  # layers are new, with all that they have; attributes of the module itself are not
        left = {key: pair for key, pair in left.items() if key.startswith(":") and key != ": _modules"}
    assert not left, left


def seeded(make: Any) -> Any:
    torch.manual_seed(1)
    return make()
