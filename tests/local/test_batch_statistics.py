"""Moments of what BatchNorm layers get in one pass."""

from typing import Any

import pytest
import torch
from torch import nn

from fedhq_lightning.local.batch_statistics import TooFewValuesError, batch_moments, tracked_layers

from ..small_federation import same_bits


class Odd(nn.BatchNorm1d):
    """What its statistics are, it alone knows."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) + 1


def random(*shape: int) -> torch.Tensor:
    return 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_layers_that_keep_statistics_are_found_with_all_their_names() -> None:
    shared = nn.BatchNorm2d(3)
    module = nn.ModuleDict(
        {
            "one": nn.BatchNorm1d(2),
            "two": shared,
            "three": nn.BatchNorm3d(2),
            "all": nn.SyncBatchNorm(2),
            "again": shared,
            "untracked": nn.BatchNorm1d(2, track_running_stats=False),
            "odd": Odd(2),
            "group": nn.GroupNorm(1, 2),
            "instance": nn.InstanceNorm2d(2, track_running_stats=True),
        }
    )
    assert tracked_layers(module) == {"one": ["one"], "two": ["two", "again"], "three": ["three"], "all": ["all"]}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (16, 4)),
        (nn.BatchNorm1d(4), (5, 4, 7)),
        (nn.BatchNorm2d(4), (3, 4, 5, 6)),
        (nn.BatchNorm3d(4), (2, 4, 3, 2, 5)),
        (nn.SyncBatchNorm(4), (3, 4, 5)),
    ],
    ids=str,
)
def test_moments_are_those_that_torch_keeps_in_training(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = random(*shape)
    reference = nn.BatchNorm1d(4, momentum=1.0)
    flat = inputs.transpose(0, 1).flatten(1).t()
    outputs = reference(flat)
    module = nn.Sequential(layer, nn.Identity())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found: list[torch.Tensor] = []
    moments = batch_moments(module, ["0"], lambda: found.append(module(inputs)))
    assert reference.running_mean is not None
    assert reference.running_var is not None
    torch.testing.assert_close(moments["0.running_mean"], reference.running_mean)
    torch.testing.assert_close(moments["0.running_var"], reference.running_var * (len(flat) - 1) / len(flat))
    torch.testing.assert_close(found[0].transpose(0, 1).flatten(1).t(), outputs)
    assert same_bits(module.state_dict(), before)
    assert module.training
    assert "forward" not in vars(layer)


def test_all_else_is_as_in_evaluation() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 4))
    inputs, seen = random(64, 4), list[Any]()
    moments = batch_moments(module, ["1"], lambda: seen.append(module(inputs)))
    torch.testing.assert_close(moments["1.running_mean"], inputs.mean(0))
    assert not seen[0].requires_grad


def test_a_layer_that_runs_twice_has_the_moments_of_all_that_it_got() -> None:
    layer = nn.BatchNorm1d(4)
    first, second = random(10, 4), 5 * random(30, 4) - 7
    moments = batch_moments(layer, [""], lambda: (layer(first), layer(second)))
    both = torch.cat([first, second])
    torch.testing.assert_close(moments[".running_mean"], both.mean(0))
    torch.testing.assert_close(moments[".running_var"], both.var(0, correction=0))


def test_a_layer_that_does_not_run_has_none() -> None:
    module = nn.ModuleList([nn.BatchNorm1d(4), nn.BatchNorm1d(4)])
    assert sorted(batch_moments(module, ["0", "1"], lambda: module[1](random(8, 4)))) == [
        "1.running_mean",
        "1.running_var",
    ]


def test_a_single_value_has_no_variance() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4))
    with pytest.raises(TooFewValuesError):
        batch_moments(module, ["0"], lambda: module(random(1, 4)))
    assert "forward" not in vars(module[0])
    assert module[0].training


def test_a_compiled_part_runs_as_it_was_written() -> None:
    module = nn.Sequential(nn.Linear(4, 4), torch.compile(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), backend="eager"))
    with torch.no_grad():
        module(random(16, 4))  # compiled by now
    (name,) = tracked_layers(module)
    inputs = random(64, 4)
    moments = batch_moments(module, [name], lambda: module(inputs))
    torch.testing.assert_close(moments[f"{name}.running_mean"], module[0](inputs).mean(0).detach())
