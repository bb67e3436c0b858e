"""Sensitivity against the deployed model, by hand, and what it must leave alone."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import LaneOptions, QuantScheme, convert
from fedhq_lightning.risk import SensitivityMeasure, quantization_sensitivity
from fedhq_lightning.support.seeds import seed_generators

MEASURES: tuple[SensitivityMeasure, ...] = ("sqnr", "loss")
INTEGERS = LaneOptions(qat_kernel="int8")


class Net(nn.Module):
    """Convolution, norm, dropout and linear layers; `steps` counts calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5),
                nn.Linear(8 * 36, 32), nn.ReLU(inplace=True), nn.Linear(32, 4),
            )  # fmt: skip
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.steps += 1
        output: Tensor = self.layers(images + 0 * torch.randn(()))
        return output


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(4, (16,), generator=generator)


def step(net: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(net(images), labels)


@pytest.mark.parametrize("scheme", ["w8a8", "w3a8", "w2a4"])
def test_is_what_deployment_does(scheme: str) -> None:
    """The deployed model's own arithmetic, in evaluation mode."""
    net, (images, labels) = Net(), batch()
    plain = copy.deepcopy(net).eval()
    deployed = convert(copy.deepcopy(plain), QuantScheme(scheme))
    with torch.no_grad():
        exact, noisy = plain(images).double(), deployed(images).double()
    found = quantization_sensitivity(net, QuantScheme(scheme), step(net, images, labels), "sqnr", INTEGERS)
    assert found == pytest.approx(float((noisy - exact).square().sum() / exact.square().sum()), rel=1e-9)
    growth = float(F.cross_entropy(noisy, labels) / F.cross_entropy(exact, labels)) - 1
    found = quantization_sensitivity(net, QuantScheme(scheme), step(net, images, labels), "loss", INTEGERS)
    assert found == pytest.approx(max(0.0, growth), abs=1e-6)


def test_fewer_bits_hurt_more() -> None:
    net, (images, labels) = Net(), batch()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    net.eval()
    for _ in range(60):
        optimizer.zero_grad()
        step(net, images, labels)().backward()
        optimizer.step()
    for each in MEASURES:
        found = [
            quantization_sensitivity(net, QuantScheme(scheme, edge_bits=None), step(net, images, labels), each)
            for scheme in ("w8a8", "w4a8", "w2a8")
        ]
        assert all(value is not None for value in found)
        assert found == sorted(found), each  # type: ignore[type-var]  # no None among them
        assert 0 <= found[0] < 0.01 < found[2], each  # type: ignore[operator]  # likewise


@pytest.mark.parametrize("which", MEASURES)
def test_leaves_everything_as_it_was(which: SensitivityMeasure) -> None:
    net, (images, labels) = Net().train(), batch()
    net.layers[1].eval()
    before, modes = copy.deepcopy(net.state_dict()), [part.training for part in net.modules()]
    kinds, hooks = [type(part) for part in net.modules()], [len(part._forward_hooks) for part in net.modules()]
    steps = net.steps
    seed_generators(3)
    expected = random.random(), np.random.rand(), torch.rand(())
    seed_generators(3)
    first = quantization_sensitivity(net, QuantScheme("w3a8"), step(net, images, labels), which)
    assert (random.random(), np.random.rand(), torch.rand(())) == expected
    assert net.steps is steps
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert [type(part) for part in net.modules()] == kinds
    assert [len(part._forward_hooks) for part in net.modules()] == hooks
    assert first == quantization_sensitivity(net, QuantScheme("w3a8"), step(net, images, labels), which)


class SideDoor(nn.Module):
    """Its own forward is never called, as in LightningModules that compute in training_step alone."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second, self.unused = nn.Linear(64, 32), nn.Linear(32, 4), nn.Linear(3, 3)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.second(self.first(images.flatten(1)).relu_()), labels)


def test_layers_stand_in_for_a_module_whose_forward_is_not_called() -> None:
    net, (images, labels) = SideDoor(), batch()
    scheme = QuantScheme("w3a8", edge_bits=None)
    found = quantization_sensitivity(net, scheme, lambda: net.step(images, labels), "sqnr", INTEGERS)
    deployed = convert(copy.deepcopy(net), scheme)
    with torch.no_grad():
        exact, noisy = net.first(images.flatten(1)), deployed.get_submodule("first")(images.flatten(1))
        ratios = [float((noisy - exact).double().square().sum() / exact.double().square().sum())]
        exact, noisy = net.second(exact.relu()), deployed.get_submodule("second")(noisy.relu())
        ratios.append(float((noisy - exact).double().square().sum() / exact.double().square().sum()))
    assert found == pytest.approx(sum(ratios) / 2, rel=1e-6)


def test_values_that_are_no_numbers_give_none() -> None:
    net, (images, labels) = Net(), batch()
    scheme = QuantScheme("w3a8")

    def of(run: Callable[[], Any], which: SensitivityMeasure) -> float | None:
        return quantization_sensitivity(net, scheme, run, which)

    assert of(lambda: None, "loss") is None
    assert of(lambda: None, "sqnr") is None, "nothing ran"
    assert of(lambda: torch.tensor(torch.nan), "loss") is None
    for each in MEASURES:
        assert of(step(net, images * torch.inf, labels), each) is None
        assert of(step(net, images * 1e38, labels), each) is None
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(torch.nan)
    for each in MEASURES:
        assert of(step(net, images, labels), each) is None


def test_ends_of_the_scale() -> None:
    net = nn.Linear(8, 4)
    scheme, inputs = QuantScheme("w8a8"), torch.randn(5, 8)
    with torch.no_grad():
        net.weight.zero_()
        assert net.bias.zero_().sum() == 0
    for each in MEASURES:
        found = quantization_sensitivity(net, scheme, lambda: net(inputs).square().sum(), each)
        assert found == 0.0, "nothing is added to zeros"
    # Negative losses are relative to their size; a loss that sinks is no harm.
    nn.init.normal_(net.weight)
    losses = iter([-3.0, -4.0, -5.0, -4.0])
    for expected in (0.25, 0.0):
        assert quantization_sensitivity(net, scheme, lambda: torch.tensor(next(losses)), "loss") == expected


def test_unknown_measure() -> None:
    with pytest.raises(ConfigurationError, match=r"'snqr'.*did you mean 'sqnr'"):
        quantization_sensitivity(Net(), QuantScheme("w4a8"), lambda: None, "snqr")  # type: ignore[arg-type]  # the point


def test_a_step_that_fails_leaves_the_module_plain() -> None:
    net = Net().train()

    def fail() -> None:
        raise ZeroDivisionError("the user's own")

    with pytest.raises(ZeroDivisionError):
        quantization_sensitivity(net, QuantScheme("w3a8"), fail)
    assert type(net.layers[0]) is nn.Conv2d
    assert net.training
    assert not net._forward_hooks
