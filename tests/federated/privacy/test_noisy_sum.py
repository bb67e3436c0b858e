"""The sum under central privacy: sensitivity on whatever grid updates come, noise as accounted, order and processes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedhq_lightning.federated.algorithms import FedAvg
from fedhq_lightning.federated.privacy import noisy_sum
from fedhq_lightning.federated.privacy.noisy_sum import NoisySum
from fedhq_lightning.federated.server import Server
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import StateDict

from ...small_federation import SmallModule, same_bits

ALONE = Processes(None)
SHAPES = {"weight": (40, 25), "bias": (40,)}


def update(seed: int, length: float) -> StateDict:
    """Of a given norm."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    norm = math.sqrt(sum(float(each.double().square().sum()) for each in state.values()))
    return {name: each * (length / norm) for name, each in state.items()}


def total(states: list[StateDict], noise: float = 1e-6, clip: float = 0.5, expected: int = 1, seed: int = 0) -> Tensor:
    """The noisy sum, in one row."""
    summed = NoisySum(SHAPES, clip, noise, expected, seed, 1)
    for state in states:
        summed.add(state, 1000)
    mean, weight = summed.mean(ALONE)
    assert weight == expected
    assert {name: tuple(each.shape) for name, each in mean.items()} == SHAPES
    return torch.cat([each.reshape(-1).double() for each in mean.values()])


def test_short_updates_stay_long_ones_are_clipped_and_weights_are_equal() -> None:
    for length, left in ((0.3, 0.3), (0.5, 0.5), (70.0, 0.5)):
        assert float(total([update(1, length)]).norm()) == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize("length", [1e-6, 0.4999, 0.5, 0.50001, 3.0, 1e9])
@pytest.mark.parametrize("clip", [0.5, 1e-3, 7.3])
def test_one_client_more_moves_the_sum_by_the_norm_at_most(length: float, clip: float) -> None:
    others = [update(seed, clip * seed) for seed in range(1, 5)]
    summed = [NoisySum(SHAPES, clip, 1.0, 1, 0, 1) for _ in range(2)]
    for state in others:
        for each in summed:
            each.add(state, 1)
    summed[1].add(update(9, length * clip), 1)
    whole = summed[1]._sum - summed[0]._sum  # type: ignore[operator]  # both have added something
    squares = sum(int(value) ** 2 for value in whole.tolist())  # exact, as Python's whole numbers are
    assert squares <= int((clip / summed[0]._unit) ** 2)


@pytest.mark.parametrize("uplink", ["weights", "delta"])
@pytest.mark.parametrize("scheme", [None, "w2a8", "w4a8", "w8a8", "w3a8-g4"])
def test_the_bound_holds_after_rounding_to_any_grid(scheme: str | None, uplink: str) -> None:
    """Two cohorts that differ by one client, whole way: payload, server, sum."""
    module = SmallModule()
    state = {name: each.detach() for name, each in module.state_dict().items()}
    grids = {} if scheme is None else QuantScheme.parse(scheme).for_layers(module)
    link = Link(state, {f"{name}.weight": grid for name, grid in grids.items()}, uplink, "fp32")  # type: ignore[arg-type]
    clip, made = 0.2, list[NoisySum]()

    def make(round_number: int) -> NoisySum:
        made.append(NoisySum(link.sent_shapes, clip, 1.0, 3, 0, round_number))
        return made[-1]

    server = Server(link, FedAvg(), frozenset(state), ALONE, min_updates=0, noisy_sum=make)
    cohorts = [server.open_round(1, state) for _ in range(2)]
    sums = list(made)
    for client_id in range(4):
        generator = torch.Generator().manual_seed(client_id)
        local = {name: each + torch.randn(each.shape, generator=generator) for name, each in state.items()}
        payload = link.up(local, cohorts[0].received, 1, client_id)
        for cohort in cohorts[: 1 if client_id == 3 else 2]:
            cohort.receive(client_id, payload, 5)
    whole = sums[0]._sum - sums[1]._sum  # type: ignore[operator]  # both have added something
    assert any(whole.tolist())
    assert sum(int(value) ** 2 for value in whole.tolist()) <= int((clip / sums[0]._unit) ** 2)
    moved = [cohort.close().state for cohort in cohorts]
    change = torch.cat([(moved[0][name] - moved[1][name]).reshape(-1) for name in state])
    assert 0 < float(change.norm()) <= clip / 3 * (1 + 1e-5)  # of the model, after rounding to float32


def test_the_noise_is_gaussian_of_the_deviation_that_is_accounted() -> None:
    drawn = torch.cat([total([], noise=2.0, clip=0.5, expected=4, seed=seed) for seed in range(100)])
    deviation = 2.0 * 0.5 / 4
    count = len(drawn)
    assert float(drawn.mean()) == pytest.approx(0, abs=4 * deviation / math.sqrt(count))
    assert float(drawn.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * count))
    for quantile in (0.01, 0.25, 0.5, 0.9, 0.999):  # the whole distribution, not two moments of it
        below = float(
            (drawn / deviation <= torch.special.ndtri(torch.tensor(quantile, dtype=torch.float64))).double().mean()
        )
        assert below == pytest.approx(quantile, abs=4 * math.sqrt(quantile * (1 - quantile) / count))


def test_noise_is_added_to_no_update_at_all_and_differs_by_round_and_seed() -> None:
    empty = [NoisySum(SHAPES, 0.5, 1.0, 2, seed, number).mean(ALONE)[0] for seed, number in ((0, 1), (0, 2), (1, 1))]
    assert all(float(each["weight"].abs().min()) > 0 for each in empty[:1])
    assert not same_bits(empty[0], empty[1])
    assert not same_bits(empty[0], empty[2])
    assert same_bits(empty[0], NoisySum(SHAPES, 0.5, 1.0, 2, 0, 1).mean(ALONE)[0])


def test_results_lie_on_the_grid_of_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the last bits of a float tell nothing that the rounded sum does not: coarse units make it visible."""
    monkeypatch.setattr(noisy_sum, "_UNITS", 4)
    found = total([update(1, 0.5)], noise=1.0, expected=1)
    assert torch.equal(found * 32, (found * 32).round())  # multiples of 2**-5


class _Two:
    """Of two processes the first, to which the second's share is handed."""

    rank, count = 0, 2

    def __init__(self, others: Tensor) -> None:
        self._others = others

    def sum_integers(self, tensor: Tensor) -> Tensor:
        return tensor + self._others


def test_two_processes_and_any_order_come_to_the_same_bits() -> None:
    states = [update(seed, 0.2 * seed) for seed in range(6)]

    def summed(some: list[StateDict]) -> NoisySum:
        one = NoisySum(SHAPES, 0.5, 1.0, 3, 0, 1)
        for state in some:
            one.add(state, 1)
        return one

    alone, _ = summed(states[::-1]).mean(ALONE)
    for cut in (0, 2, 6):
        others = summed(states[cut:])._sum
        there = _Two(torch.zeros(1040, dtype=torch.int64) if others is None else others)
        together, _ = summed(states[:cut]).mean(there)  # type: ignore[arg-type]  # all that it asks for
        assert same_bits(alone, together)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"weight": state["weight"]},
        lambda state: state | {"more": torch.zeros(1)},
        lambda state: state | {"bias": torch.zeros(41)},
    ],
)
def test_what_is_not_of_the_model_is_refused_whole(change: Callable[[StateDict], StateDict]) -> None:
    summed = NoisySum(SHAPES, 0.5, 1.0, 1, 0, 1)
    with pytest.raises(ValueError, match="names or shapes"):
        summed.add(change(update(1, 0.1)), 1)
    assert summed._sum is None
