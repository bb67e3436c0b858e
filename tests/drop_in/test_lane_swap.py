"""Switching a module into a lane and back, and what cannot be switched."""

from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision, TransformerEnginePrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import nn

from fedhq_lightning.drop_in.lane_swap import Lane, has_lazy_layers, refuse_unsupported
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import LaneOptions, QuantScheme

from ..small_script import ScriptModule, is_plain, same_weights

SCHEME = QuantScheme("w4a8")


def trainer_with(strategy: type = SingleDeviceStrategy, precision: type = Precision) -> Any:
    """A stand-in: Lightning initializes most of these only where their hardware or package is."""
    return Mock(strategy=strategy.__new__(strategy), precision_plugin=precision.__new__(precision))


@pytest.mark.parametrize("options", [None, LaneOptions(qat_kernel="fake")])
def test_enter_and_leave(options: LaneOptions | None) -> None:
    module, untouched = ScriptModule(), ScriptModule()
    lane = Lane("qat", SCHEME, options)
    names = [name for name, _ in module.named_modules()]
    for _ in range(2):
        lane.enter(module)
        assert lane.is_entered
        assert not is_plain(module)
        assert same_weights(module, untouched)
        lane.leave(module)
        assert not lane.is_entered
        assert is_plain(module)
        assert [name for name, _ in module.named_modules()] == names


def test_fast_path_of_transformers_comes_back() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
    lane, x = Lane("qat", SCHEME, LaneOptions(qat_kernel="int8")), torch.randn(2, 3, 8)
    before = layer.activation_relu_or_gelu
    with torch.no_grad():
        expected = layer(x)
        lane.enter(layer)
        lane.enter(layer)
        assert not layer.activation_relu_or_gelu
        assert not torch.equal(layer(x), expected)
        lane.leave(layer)
        assert layer.activation_relu_or_gelu == before
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(("strategy", "advice"), [
    (FSDPStrategy, "ddp"), (DeepSpeedStrategy, "ddp"), (ModelParallelStrategy, "ddp"), (XLAStrategy, "accelerator"),
    (SingleDeviceXLAStrategy, "accelerator"),
])  # fmt: skip
def test_refuses_strategies_by_name(strategy: type, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{strategy.__name__}.*{advice}"):
        refuse_unsupported(trainer_with(strategy), ScriptModule())


def test_refuses_precisions_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"TransformerEnginePrecision.*32-true"):
        refuse_unsupported(trainer_with(precision=TransformerEnginePrecision), ScriptModule())


def test_refuses_layers_wrapped_by_compile() -> None:
    module = ScriptModule()
    module.net = torch.compile(module.net)  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match=r"ScriptModule\.net is the result of torch.compile.*net\.compile\(\)"):
        refuse_unsupported(trainer_with(), module)


def test_checks_the_scheme_once_layers_have_shapes() -> None:
    class Lazy(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(3)

    module, scheme = Lazy(), QuantScheme("w4a8-g5", edge_bits=None)
    refuse_unsupported(trainer_with(DDPStrategy), module, scheme)
    assert has_lazy_layers(module)
    module.layer(torch.ones(1, 4))
    assert not has_lazy_layers(module)
    with pytest.raises(ConfigurationError, match="a group of 5 does not divide"):
        refuse_unsupported(trainer_with(DDPStrategy), module, scheme)
