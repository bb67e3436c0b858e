"""The public grid: exact sums that cannot overflow, and a mean within the bound that its module states."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.federated.secure.fixed_point import FixedPoint
from fedhq_lightning.federated.secure.messages import ProtocolError
from fedhq_lightning.support.collectives import Processes

SHAPES = {"weight": (3, 4), "bias": (), "empty": (0,)}
WEIGHTS = (1, 7, 600, 92)


def grid(bits: int = 64, max_value: float = 64.0, max_examples: int = 700) -> FixedPoint:
    return FixedPoint(SHAPES, max_value, max_examples, bits)


def updates(scale: float = 1e-3) -> list[dict[str, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(0)
    return [{name: scale * torch.randn(shape, generator=drawn) for name, shape in SHAPES.items()} for _ in WEIGHTS]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 10.0])
def test_the_mean_is_within_its_bound(bits: int, scale: float) -> None:
    one, given = grid(bits), updates(scale)
    total = np.sum([one.integers(*each) for each in zip(given, WEIGHTS, strict=True)], axis=0)
    mean, examples = one.mean(total.astype(f"u{bits // 8}"))
    assert examples == sum(WEIGHTS)
    assert {name: tuple(value.shape) for name, value in mean.items()} == SHAPES
    bound = Fraction(one.unit) * len(WEIGHTS) / (2 * sum(WEIGHTS))
    for name in SHAPES:
        for place, found in enumerate(mean[name].reshape(-1).tolist()):
            terms = (
                Fraction(each[name].reshape(-1)[place].item()) * weight
                for each, weight in zip(given, WEIGHTS, strict=True)
            )
            exact = sum(terms) / sum(WEIGHTS)
            assert abs(Fraction(found) - exact) <= bound + abs(exact) * Fraction(2) ** -24


def test_with_64_bits_it_is_the_mean_without_masks() -> None:
    one, plain, given = grid(), ExactMean(), updates()
    total = np.zeros(one.num_values, np.uint64)
    for update, weight in zip(given, WEIGHTS, strict=True):
        plain.add(update, weight)
        total += one.integers(update, weight)
    mean, _ = one.mean(total)
    expected, _ = plain.mean(Processes(None))
    assert all(torch.equal(mean[name], expected[name]) for name in SHAPES)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("max_value", "max_examples"), [(64.0, 2**29), (0.125, 1), (3.0, 1000), (2.0**20, 2**29)])
def test_the_largest_sum_does_not_overflow(bits: int, sign: float, max_value: float, max_examples: int) -> None:
    one = grid(bits, max_value, max_examples)
    largest = {name: torch.full(shape, sign * max_value) for name, shape in SHAPES.items()}
    parts = [max_examples // 2, max_examples - max_examples // 2]
    total = sum((one.integers(largest, part) for part in parts if part), np.zeros(one.num_values, f"u{bits // 8}"))
    mean, examples = one.mean(total)
    assert examples == max_examples
    assert math.isclose(float(mean["bias"]), sign * max_value, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (64.1, "weight: a magnitude of 64.1, beyond secure_aggregation.max_value 64"),
        (math.inf, "not finite"),
        (math.nan, "not finite"),
    ],
)
def test_values_that_cannot_be_summed_are_refused_by_name(value: float, words: str) -> None:
    update = updates()[0]
    update["weight"][1, 2] = value
    with pytest.raises(ProtocolError, match=words):
        grid().integers(update, 1)


def test_other_shapes_and_weights_are_refused() -> None:
    with pytest.raises(ProtocolError, match="other names or shapes"):
        grid().integers({"weight": torch.zeros(3, 4)}, 1)
    with pytest.raises(ProtocolError, match="701 examples: a round can have 700"):
        grid().integers(updates()[0], 701)
