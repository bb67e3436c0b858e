"""The exact mean against fractions.Fraction."""

import itertools
import math
import random
import threading
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from fedhq_lightning.federated import chunk_loops
from fedhq_lightning.federated.exact_mean import MAX_TOTAL_WEIGHT, MAX_VALUE, ExactMean
from fedhq_lightning.federated.payload import Header, PackedState, decoded, encode, open_payload
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.quantize.native.lanes import kernels_of_torch
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import StateDict

from ..small_federation import same_bits

SMALLEST = 2.0**-149
LARGEST = MAX_VALUE - 2.0**9
ALONE = Processes(None)


def accumulate(states: list[StateDict], weights: list[int]) -> ExactMean:
    mean = ExactMean()
    for state, weight in zip(states, weights, strict=True):
        mean.add(state, weight)
    return mean


def mean_of(states: list[StateDict], weights: list[int]) -> StateDict:
    return accumulate(states, weights).mean(ALONE)[0]


class Together(Processes):
    """Processes that are threads."""

    def __init__(self, rank: int, told: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.count, self._told, self._barrier = rank, len(told), told, barrier

    def gather(self, value: Any) -> list[Any]:
        self._told[self.rank] = value
        self._barrier.wait()
        everybody = list(self._told)
        self._barrier.wait()
        return everybody

    def sum_integers(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.gather(tensor.clone())).sum(0)


def mean_of_all(parts: list[ExactMean]) -> list[Any]:
    """What every process finds."""
    told, found = [None] * len(parts), [None] * len(parts)
    barrier = threading.Barrier(len(parts), timeout=30)

    def run(rank: int) -> None:
        try:
            found[rank] = parts[rank].mean(Together(rank, told, barrier))[0]
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


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
    got = mean_of(states, weights)["w"]
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
        got = mean_of([{"w": torch.tensor([value])} for value in signed], weights)["w"].item()
        assert got != 0
        assert_nearest(got, exact(signed, weights))


def test_order_does_not_matter() -> None:
    generator = random.Random(3)
    states = [{"w": random_values(generator, (6,)), "b": random_values(generator, ())} for _ in range(5)]
    weights = [3, 1, 100, 7, 41]
    first = mean_of(states, weights)
    for order in itertools.permutations(range(5)):
        assert same_bits(mean_of([states[i] for i in order], [weights[i] for i in order]), first)


@pytest.mark.parametrize("num_parts", [2, 3])
def test_splitting_over_processes_does_not_matter(num_parts: int) -> None:
    generator = random.Random(4)
    states = [{"w": random_values(generator, (6,)), "empty": torch.zeros(0, 2)} for _ in range(7)]
    states[0]["w"].fill_(0.25)
    weights = [generator.randint(1, 50) for _ in range(7)]
    whole = mean_of(states, weights)
    for trial in range(20):
        dealt = [generator.randrange(num_parts if trial else 1) for _ in states]  # once all to the first
        parts = [
            accumulate(
                [state for state, part in zip(states, dealt, strict=True) if part == which],
                [weight for weight, part in zip(weights, dealt, strict=True) if part == which],
            )
            for which in range(num_parts)
        ]
        for found in mean_of_all(parts):
            assert isinstance(found, dict)
            assert same_bits(found, whole)


@pytest.mark.parametrize("weight", [1, 3, 1437, MAX_TOTAL_WEIGHT])
def test_one_update_keeps_its_bits(weight: int) -> None:
    values = [0.0, 1.0, -1 / 3, SMALLEST, -SMALLEST, 3 * SMALLEST, 2.0**-126, 1e-30, 123456.789, LARGEST, -LARGEST]
    state = {"w": torch.tensor(values), "scalar": torch.tensor(0.1), "empty": torch.zeros(0, 3)}
    assert same_bits(mean_of([state], [weight]), state)


def test_half_precision_values_are_taken_exactly() -> None:
    state = {"w": torch.tensor([0.1, -7.0], dtype=torch.bfloat16)}
    assert same_bits(mean_of([state], [5]), {"w": state["w"].float()})


def test_the_sign_of_zero_is_lost() -> None:
    assert same_bits(mean_of([{"w": torch.tensor([-0.0])}], [2]), {"w": torch.tensor([0.0])})


def test_equal_updates_average_to_themselves() -> None:
    state = {"w": random_values(random.Random(9), (50,))}
    assert same_bits(mean_of([state] * 3, [1, 10, 5]), mean_of([state], [1]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, MAX_VALUE, -MAX_VALUE])
def test_refuses_values_out_of_range_and_keeps_what_it_has(value: float) -> None:
    mean = accumulate([{"a": torch.ones(2), "w": torch.ones(2)}], [3])
    with pytest.raises(ValueError, match="w: not finite, or a magnitude"):
        mean.add({"a": torch.zeros(2), "w": torch.tensor([1.0, value])}, 3)
    state, weight = mean.mean(ALONE)
    assert weight == 3
    assert same_bits(state, {"a": torch.ones(2), "w": torch.ones(2)})


def test_an_update_that_is_refused_at_its_end_leaves_nothing_behind() -> None:
    """Its first chunks were added by then, and some of their values held apart."""
    first, second = ordinary(0), ordinary(1)
    second["large"][0, ::3] = 1e-20
    second["scalar"] = torch.tensor(math.nan)
    total = accumulate([first], [3])
    with pytest.raises(ValueError, match="scalar: not finite"):
        total.add(second, 70_000)
    assert same_bits(total.mean(ALONE)[0], first)


@pytest.mark.parametrize(
    "unlike", [{"w": torch.ones(3)}, {"v": torch.ones(2)}, {"w": torch.ones(2), "v": torch.ones(2)}]
)
def test_refuses_other_names_and_shapes(unlike: StateDict) -> None:
    mean = accumulate([{"w": torch.ones(2)}], [3])
    with pytest.raises(ValueError, match="unlike those of the first"):
        mean.add(unlike, 3)
    parts = [accumulate([{"w": torch.ones(2)}], [3]), accumulate([unlike], [3])]
    assert all(isinstance(found, ValueError) for found in mean_of_all(parts))


def test_refuses_weights_out_of_range() -> None:
    mean = ExactMean()
    for weight in (0, -1, MAX_TOTAL_WEIGHT + 1):
        with pytest.raises(ValueError, match="must be >= 1 and the total at most"):
            mean.add({"w": torch.ones(1)}, weight)
    mean.add({"w": torch.ones(1)}, MAX_TOTAL_WEIGHT)
    with pytest.raises(ValueError, match="total at most"):
        mean.add({"w": torch.ones(1)}, 1)


def test_refuses_a_total_that_several_processes_passed_together() -> None:
    parts = [accumulate([{"w": torch.ones(1)}], [weight]) for weight in (MAX_TOTAL_WEIGHT, 1)]
    assert all("at most" in str(found) for found in mean_of_all(parts))


def test_largest_sums_do_not_overflow() -> None:
    state = {"w": torch.tensor([LARGEST, -LARGEST])}
    assert same_bits(mean_of([state] * 4, [MAX_TOTAL_WEIGHT // 4] * 4), state)


def test_mean_of_nothing() -> None:
    assert ExactMean().mean(ALONE) == ({}, 0)
    assert mean_of_all([ExactMean(), ExactMean()]) == [{}, {}]


def ordinary(seed: int) -> StateDict:
    """A model with small tensors that share a chunk, one of several chunks, zeros, and variances of a million."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "large": torch.randn(3, chunk_loops.CHUNK // 2 + 5, generator=generator) * 0.05,
        "bias": torch.zeros(10),
        "running_var": torch.rand(64, generator=generator) * 1e6,
        "norm.weight": 1 + 0.01 * torch.randn(64, generator=generator),
        "scalar": torch.tensor(0.1 * seed),
    }


@pytest.mark.parametrize("weights", [[50] * 6, [1, 70_000, 3, 2**28, 17, 2**15]])
def test_an_ordinary_model_in_chunks(weights: list[int]) -> None:
    states = [ordinary(seed) for seed in range(6)]
    got = mean_of(states, weights)
    assert same_bits(mean_of(states[::-1], weights[::-1]), got)
    for found in mean_of_all([accumulate(states[:1], weights[:1]), accumulate(states[1:], weights[1:])]):
        assert isinstance(found, dict)
        assert same_bits(found, got)
    assert same_bits(mean_of(states[:1], weights[3:4]), states[0])
    generator = random.Random(0)
    for name, value in got.items():
        flat = [state[name].reshape(-1) for state in states]
        for place in generator.sample(range(value.numel()), min(value.numel(), 50)):
            assert_nearest(value.reshape(-1)[place].item(), exact([each[place].item() for each in flat], weights))


def test_what_processes_send_is_one_integer_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    summed = Together.sum_integers

    def counted(self: Together, tensor: Tensor) -> Tensor:
        sent.append(tensor.numel())
        return summed(self, tensor)

    monkeypatch.setattr(Together, "sum_integers", counted)
    # Sums in other units on every process: their first updates are of other magnitudes.
    states = [
        {"weight": torch.randn(300, generator=torch.Generator().manual_seed(seed)) * 4.0**seed} for seed in range(3)
    ]
    expected = mean_of(states, [7, 7, 7])
    assert all(same_bits(found, expected) for found in mean_of_all([accumulate([each], [7]) for each in states]))
    assert sent == [300] * 3
    # Digits only where one integer cannot hold it.
    sent.clear()
    states[0]["weight"] *= 2.0**-100
    expected = mean_of(states, [7, 7, 7])
    assert all(same_bits(found, expected) for found in mean_of_all([accumulate([each], [7]) for each in states]))
    assert min(sent) > 300


GRIDS = {"large": LayerScheme(4, 8, None), "norm.weight": LayerScheme(8, None, 16), "running_var": LayerScheme(3, 8, 2)}


def packed(state: StateDict) -> PackedState:
    """As an update arrives."""
    values = state | {"norm.weight": state["norm.weight"].view(4, 16), "running_var": state["running_var"].view(8, 8)}
    header = Header("weights", 1, 0)
    return open_payload(encode(values, GRIDS, header), values, GRIDS, header)


@pytest.mark.parametrize("weights", [[50] * 4, [1, 70_000, 3, 2**15]])
def test_packed_weights_are_added_as_their_values(weights: list[int]) -> None:
    states = [packed(ordinary(seed)) for seed in range(4)]
    expected = mean_of([decoded(state) for state in states], weights)
    total = ExactMean()
    for state, weight in zip(states, weights, strict=True):
        total.add(state, weight)
    assert same_bits(total.mean(ALONE)[0], expected)
    with kernels_of_torch():
        for state, weight in zip(states, weights, strict=True):
            total.add(state, weight)
        assert same_bits(total.mean(ALONE)[0], expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e12])
def test_a_packed_update_that_is_refused_leaves_nothing_behind(value: float) -> None:
    first, wrong = packed(ordinary(0)), ordinary(1)
    wrong["large"][2, -1] = value
    total = ExactMean()
    total.add(first, 3)
    with pytest.raises(ValueError, match="large: not finite, or a magnitude"):
        total.add(packed(wrong), 7)
    assert same_bits(total.mean(ALONE)[0], decoded(first))


def test_what_does_not_fit_is_held_apart_however_much_it_is() -> None:
    """Of each of these kinds of update every one takes another way than the first; all ways give the same bits."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(1000, generator=generator)
    one_tiny, half_tiny, all_tiny = first.clone(), first.clone(), first * 2.0**-100
    one_tiny[7] = SMALLEST
    half_tiny[::2] *= 2.0**-60
    updates = [first, one_tiny, half_tiny, all_tiny, first * 2.0**20, first, -first, first * 2.0**-20]
    states = [{"w": value} for value in updates]
    weights = [50, 20, 3, 2**27, 1, 2**16 + 1, 2**15, 800]
    got = mean_of(states, weights)
    for _ in range(10):
        order = torch.randperm(len(states), generator=generator).tolist()
        assert same_bits(mean_of([states[i] for i in order], [weights[i] for i in order]), got)
    for place in range(50):
        assert_nearest(got["w"][place].item(), exact([each[place].item() for each in updates], weights))


def test_many_rare_values_take_no_more_room_than_digits() -> None:
    total, state = ExactMean(), torch.ones(1000)
    total.add({"w": state}, 1)
    for place in range(0, 1000, 2):
        tiny = state.clone()
        tiny[place] = 1e-30
        total.add({"w": tiny}, 1)
    (chunk,) = total._sums
    assert len(chunk.apart) <= 125
    got = total.mean(ALONE)[0]["w"].tolist()
    assert_nearest(got[0], exact([1.0, torch.tensor(1e-30).item()], [500, 1]))
    assert got[1] == 1.0


def test_sums_of_many_updates_do_not_overflow() -> None:
    """The first addend leaves two bits; larger ones fill the integers in 2,048 updates."""
    total = ExactMean()
    total.add({"w": torch.tensor([1.0, 1.0])}, 1)
    for _ in range(5000):
        total.add({"w": torch.tensor([3.9, -3.9])}, 1)
    got = total.mean(ALONE)[0]["w"].tolist()
    near = torch.tensor(3.9).item()
    for value, sign in zip(got, (1, -1), strict=True):
        assert_nearest(value, exact([1.0, sign * near], [1, 5000]))
