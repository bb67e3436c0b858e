"""Clipped gradients of single examples: both ways, in every lane, and their bound."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.privacy.example_gradients import (
    ByOpacus,
    OneAtATime,
    num_rows,
    opacus_hooks,
    opacus_knows,
)
from fedhq_lightning.quantize import LaneOptions, QuantScheme, prepare


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 8, 8, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 16),
        nn.LayerNorm(16),
        nn.Linear(16, 3),
    )


def backward_of(module: nn.Module) -> Callable[[Any], Tensor]:
    def backward(batch: Any) -> Tensor:
        loss = nn.functional.cross_entropy(module(batch[0]), batch[1])
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return loss

    return backward


def reference(module: nn.Module, batch: Any, most: float) -> list[Tensor]:
    """The definition, in a loop."""
    total = [torch.zeros_like(each) for each in module.parameters()]
    for inputs, label in zip(*batch, strict=True):
        module.zero_grad()
        nn.functional.cross_entropy(module(inputs[None]), label[None]).backward()  # type: ignore[no-untyped-call]
        gradients = [each.grad.clone() for each in module.parameters() if each.grad is not None]
        norm = torch.cat([each.reshape(-1) for each in gradients]).norm()
        for whole, gradient in zip(total, gradients, strict=True):
            whole += gradient * min(1.0, float(most / norm))
    return total


@pytest.mark.parametrize("most", [0.1, 2.0, 1e4])
def test_both_ways_are_the_definition(most: float) -> None:
    module, batch = network(), images(7)
    expected = reference(module, batch, most)
    parameters = list(module.parameters())
    slow = OneAtATime(parameters, most).clipped_sum(batch, backward_of(module))
    with opacus_hooks(module):
        fast = ByOpacus(parameters, most).clipped_sum(batch, backward_of(module))
    for found in (slow, fast):
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_bound_holds_under_autocast() -> None:
    module = network()
    with opacus_hooks(module), torch.autocast("cpu", torch.bfloat16):
        found = ByOpacus(list(module.parameters()), 0.05).clipped_sum(images(1), backward_of(module))
    assert float(torch.cat([each.reshape(-1) for each in found]).norm()) == pytest.approx(0.05, rel=1e-4)


def test_opacus_leaves_a_module_as_it_was() -> None:
    module = network()
    before = [sorted(vars(part)) for part in module.modules()], [sorted(vars(each)) for each in module.parameters()]
    with opacus_hooks(module):
        ByOpacus(list(module.parameters()), 1.0).clipped_sum(images(3), backward_of(module))
    after = [sorted(vars(part)) for part in module.modules()], [sorted(vars(each)) for each in module.parameters()]
    assert after == before
    assert not any(part._forward_hooks or part._backward_hooks for part in module.modules())


@pytest.mark.parametrize("mode", ["ptq", "qat"])
@pytest.mark.parametrize("scheme", ["w2a8", "w4a8", "w8a8"])
def test_one_example_more_moves_the_sum_by_the_norm_at_most_in_every_lane(scheme: str, mode: Any) -> None:
    kernels = {"ptq": {"*": "int8"}, "qat": {"*": "int8"}}
    module = prepare(network(), mode, QuantScheme.parse(scheme), LaneOptions(layer_kernels=kernels))
    gradients = OneAtATime(list(module.parameters()), 0.5)
    inputs, labels = images(6)
    inputs[5] *= 1e3  # in a batch it would decide the steps of the others
    whole = gradients.clipped_sum((inputs, labels), backward_of(module))
    without = gradients.clipped_sum((inputs[:5], labels[:5]), backward_of(module))
    change = torch.cat([(one - other).reshape(-1).double() for one, other in zip(whole, without, strict=True)])
    assert 0 < float(change.norm()) <= 0.5 * (1 + 1e-5)


def test_in_the_ptq_lane_a_batch_mixes_its_examples() -> None:
    """Why lanes go one at a time: an example that is there or not changes the outputs for the others."""
    kernels = {"ptq": {"*": "int8"}}
    module = prepare(network()[:1], "ptq", QuantScheme.parse("w4a8"), LaneOptions(layer_kernels=kernels))
    inputs, _ = images(6)
    inputs[5] *= 1e3
    assert not torch.equal(module(inputs)[:5], module(inputs[:5]))


def test_what_opacus_knows() -> None:
    assert opacus_knows(network())
    assert not opacus_knows(nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(2, 1)))
    assert not opacus_knows(nn.BatchNorm1d(3))
    module = prepare(network(), "ptq", QuantScheme.parse("w4a8"), LaneOptions())
    assert not opacus_knows(module)
    frozen = nn.Sequential(nn.MultiheadAttention(2, 1).requires_grad_(False), nn.Linear(2, 2))
    assert opacus_knows(frozen)


def test_parameters_that_an_example_does_not_reach() -> None:
    module = nn.ModuleDict({"used": nn.Linear(2, 3), "not": nn.Linear(2, 3)})
    batch = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    parameters = list(module.parameters())
    slow = OneAtATime(parameters, 1.0).clipped_sum(batch, backward_of(module["used"]))
    with opacus_hooks(module):
        fast = ByOpacus(parameters, 1.0).clipped_sum(batch, backward_of(module["used"]))
    for found in (slow, fast):
        assert [bool(each.any()) for each in found] == [True, True, False, False]


@pytest.mark.parametrize(
    "batch", [(torch.ones(4, 2), torch.ones(3)), (torch.ones(4, 2), "name"), (torch.ones(4), torch.tensor(1.0)), []]
)
def test_batches_that_cannot_be_taken_apart(batch: Any) -> None:
    with pytest.raises(ConfigurationError, match="tensors whose first dimension is the example"):
        num_rows(batch)


def test_rows_of_nested_batches() -> None:
    assert num_rows({"inputs": [torch.ones(4, 2), torch.ones(4)], "label": torch.ones(4)}) == 4
