"""The exact mean against fractions.Fraction."""

import itertools
import math
import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from fedhq_lightning.federated.exact_mean import MAX_TOTAL_WEIGHT, MAX_VALUE, ExactMean, padded
from fedhq_lightning.types import StateDict

from ..small_federation import same_bits

SMALLEST = 2.0**-149
LARGEST = MAX_VALUE - 2.0**9


def accumulate(states: list[StateDict], weights: list[int]) -> ExactMean:
    mean = ExactMean()
    for state, weight in zip(states, weights, strict=True):
        mean.add(state, weight)
    return mean


def merge(parts: list[ExactMean]) -> ExactMean:
    """What processes do: pad to the longest, add the digits."""
    total = ExactMean()
    total.total_weight = sum(part.total_weight for part in parts)
    for name in parts[0].limbs:
        num_digits = max(part.limbs[name].shape[0] for part in parts)
        total.limbs[name] = torch.stack([padded(part.limbs[name], num_digits) for part in parts]).sum(0)
    return total


def random_values(generator: random.Random, shape: tuple[int, ...]) -> Tensor:
    """Over all of the range: most alike, as weights are, some tiny, some huge."""
    values = []
    for _ in range(math.prod(shape)):
        exponent = generator.choice([0, 0, 0, -10, 10, 32, -126, -145])
        values.append(generator.uniform(-1, 1) * 2.0**exponent)
    return torch.tensor(values, dtype=torch.float64).float().reshape(shape)


def exact(values: list[float], weights: list[int]) -> Fraction:
    total = sum((Fraction(value) * weight for value, weight in zip(values, weights, strict=True)), Fraction(0))
    return total / sum(weights)


def assert_nearest(got: float, wanted: Fraction) -> None:
    """`got` is a float32 next to the exact value: half a unit in the last place, and 2**-20 of it for two roundings."""
    rounded = torch.tensor(float(wanted), dtype=torch.float64).float()
    above = torch.nextafter(rounded.abs(), torch.tensor(math.inf))
    unit = Fraction(above.item()) - Fraction(rounded.abs().item())
    assert abs(Fraction(got) - wanted) <= unit * (Fraction(1, 2) + Fraction(1, 2**20)), (got, float(wanted))


@pytest.mark.parametrize("seed", range(8))
def test_is_the_exact_mean_rounded(seed: int) -> None:
    generator = random.Random(seed)
    count = generator.randint(1, 9)
    states = [{"w": random_values(generator, (4, 5))} for _ in range(count)]
    weights = [generator.choice([1, 3, 17, 600, 2**24 + 1]) for _ in range(count)]
    got = accumulate(states, weights).mean()["w"]
    assert got.dtype == torch.float32
    assert got.shape == (4, 5)
    for index in itertools.product(range(4), range(5)):
        assert_nearest(got[index].item(), exact([state["w"][index].item() for state in states], weights))


def test_cancellation_leaves_what_is_left() -> None:
    """Digits of different places cancel against each other; only the last bit of 60 survives."""
    weight = 2**27 - 1
    values = [4.0, -4 + 2.0**-22, -(2.0**-22), 2.0**-30]
    weights = [weight, weight, weight, 1]
    for sign in (1, -1):
        signed = [sign * value for value in values]
        got = accumulate([{"w": torch.tensor([value])} for value in signed], weights).mean()["w"].item()
        assert got != 0
        assert_nearest(got, exact(signed, weights))


def test_order_does_not_matter() -> None:
    generator = random.Random(3)
    states = [{"w": random_values(generator, (6,)), "b": random_values(generator, ())} for _ in range(5)]
    weights = [3, 1, 100, 7, 41]
    first = accumulate(states, weights).mean()
    for order in itertools.permutations(range(5)):
        assert same_bits(accumulate([states[i] for i in order], [weights[i] for i in order]).mean(), first)


@pytest.mark.parametrize("num_parts", [2, 3])
def test_splitting_over_accumulators_does_not_matter(num_parts: int) -> None:
    generator = random.Random(4)
    states = [{"w": random_values(generator, (6,))} for _ in range(7)]
    states[0]["w"].fill_(0.25)  # one digit only, so that padding is needed
    weights = [generator.randint(1, 50) for _ in range(7)]
    whole = accumulate(states, weights).mean()
    for _ in range(20):
        dealt = [generator.randrange(num_parts) for _ in states]
        dealt[:num_parts] = range(num_parts)
        parts = [
            accumulate(
                [state for state, part in zip(states, dealt, strict=True) if part == which],
                [weight for weight, part in zip(weights, dealt, strict=True) if part == which],
            )
            for which in range(num_parts)
        ]
        assert same_bits(merge(parts).mean(), whole)


@pytest.mark.parametrize("weight", [1, 3, 1437, MAX_TOTAL_WEIGHT])
def test_one_update_keeps_its_bits(weight: int) -> None:
    values = [0.0, 1.0, -1 / 3, SMALLEST, -SMALLEST, 3 * SMALLEST, 2.0**-126, 1e-30, 123456.789, LARGEST, -LARGEST]
    state = {"w": torch.tensor(values), "scalar": torch.tensor(0.1), "empty": torch.zeros(0, 3)}
    assert same_bits(accumulate([state], [weight]).mean(), state)


def test_half_precision_values_are_taken_exactly() -> None:
    state = {"w": torch.tensor([0.1, -7.0], dtype=torch.bfloat16)}
    assert same_bits(accumulate([state], [5]).mean(), {"w": state["w"].float()})


def test_the_sign_of_zero_is_lost() -> None:
    assert same_bits(accumulate([{"w": torch.tensor([-0.0])}], [2]).mean(), {"w": torch.tensor([0.0])})


def test_equal_updates_average_to_themselves() -> None:
    state = {"w": random_values(random.Random(9), (50,))}
    assert same_bits(accumulate([state] * 3, [1, 10, 5]).mean(), accumulate([state], [1]).mean())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, MAX_VALUE, -MAX_VALUE])
def test_refuses_values_out_of_range_and_keeps_what_it_has(value: float) -> None:
    mean = accumulate([{"a": torch.ones(2), "w": torch.ones(2)}], [3])
    with pytest.raises(ValueError, match="w: not finite, or a magnitude"):
        mean.add({"a": torch.zeros(2), "w": torch.tensor([1.0, value])}, 3)
    assert mean.total_weight == 3
    assert same_bits(mean.mean(), {"a": torch.ones(2), "w": torch.ones(2)})


def test_refuses_weights_out_of_range() -> None:
    mean = ExactMean()
    for weight in (0, -1, MAX_TOTAL_WEIGHT + 1):
        with pytest.raises(ValueError, match="must be >= 1 and the total at most"):
            mean.add({"w": torch.ones(1)}, weight)
    mean.add({"w": torch.ones(1)}, MAX_TOTAL_WEIGHT)
    with pytest.raises(ValueError, match="total at most"):
        mean.add({"w": torch.ones(1)}, 1)


def test_refuses_a_total_that_several_processes_passed_together() -> None:
    mean = accumulate([{"w": torch.ones(1)}], [MAX_TOTAL_WEIGHT])
    mean.total_weight += 1
    with pytest.raises(ValueError, match="at most"):
        mean.mean()


def test_largest_sums_do_not_overflow() -> None:
    state = {"w": torch.tensor([LARGEST, -LARGEST])}
    assert same_bits(accumulate([state] * 4, [MAX_TOTAL_WEIGHT // 4] * 4).mean(), state)


def test_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="no updates"):
        ExactMean().mean()


def test_padding_adds_zero_digits() -> None:
    limbs = torch.tensor([[1, 2], [3, 4]])
    assert padded(limbs, 4).tolist() == [[1, 2], [3, 4], [0, 0], [0, 0]]
    assert padded(limbs, 2).tolist() == limbs.tolist()
