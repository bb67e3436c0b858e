"""What every allocator must do, whatever it decides by."""

import inspect
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import fedhq_lightning.allocation as allocation
from fedhq_lightning.allocation import (
    AllocationContext,
    Allocator,
    FixedAllocator,
    FreeQatAllocator,
    HybridAllocator,
    MatchedRandomAllocator,
)
from fedhq_lightning.types import MODES

from .references import write_reference

CLIENTS = [*range(12), *(f"site-{letter}" for letter in "abcdefgh")]


def context(seed: int = 7) -> AllocationContext:
    seconds = {"fp": 2.0, "ptq": 1.0, "qat": 2.5}
    return AllocationContext(
        client_ids=CLIENTS,
        seed=seed,
        client_seconds=lambda client_id, mode: seconds[mode] * (1 + CLIENTS.index(client_id) % 3),
        divergence=lambda client_id, measure: (CLIENTS.index(client_id) * 7 % 20) / 20,
    )


def reference() -> str:
    """A run of three rounds with every client in each, a third of them in qat."""
    modes = {client_id: "qat" if i % 3 == 0 else "ptq" for i, client_id in enumerate(CLIENTS)}
    return write_reference(
        Path("reference"), [modes] * 3, tier=lambda client_id: f"tier {CLIENTS.index(client_id) % 2}"
    )


# A new allocator is added here; test_every_allocator_is_listed fails until it is.
ALLOCATORS: dict[str, Callable[[], Allocator]] = {
    "fixed-fp": lambda: FixedAllocator("fp"),
    "fixed-ptq": lambda: FixedAllocator(),
    "fixed-qat": lambda: FixedAllocator("qat"),
    "fixed-half-at-random": lambda: FixedAllocator(0.5),
    "fixed-none": lambda: FixedAllocator(0.0),
    "fixed-all": lambda: FixedAllocator(1),
    "fixed-third-by-divergence": lambda: FixedAllocator(1 / 3, by="divergence"),
    "fixed-map": lambda: FixedAllocator({client_id: MODES[i % 3] for i, client_id in enumerate(CLIENTS)}),
    "free-qat": FreeQatAllocator,
    "hybrid": HybridAllocator,
    "hybrid-coarse": lambda: HybridAllocator(fine=False, divergence="hellinger"),
    "hybrid-without-data": lambda: HybridAllocator(divergence=None, window=1),
    "random-matched-in-total": lambda: MatchedRandomAllocator(reference()),
    "random-matched-per-tier": lambda: MatchedRandomAllocator(reference(), per="tier"),
}


@pytest.fixture(params=ALLOCATORS.values(), ids=ALLOCATORS.keys())
def make(request) -> Callable[[], Allocator]:
    return request.param


def ready(make, seed: int = 7) -> Allocator:
    allocator = make()
    allocator.begin(context(seed))
    return allocator


class TestAllocatorContract:
    def test_the_plan_covers_the_cohort_and_nobody_else(self, make):
        allocator = ready(make)
        for round_number, size in enumerate((1, 5, len(CLIENTS)), start=1):
            cohort = random.Random(round_number).sample(CLIENTS, size)
            plan = allocator.propose(round_number, cohort)
            assert set(plan.modes) == set(cohort)
            assert set(plan.modes.values()) <= set(MODES)
            assert sum(plan.counts().values()) == size
            assert plan.reason

    def test_an_empty_cohort_has_an_empty_plan(self, make):
        assert ready(make).propose(1, []).modes == {}

    def test_the_same_run_gets_the_same_plans(self, make):
        first, second = ready(make), ready(make)
        for round_number in (1, 2, 3):
            cohort = random.Random(round_number).sample(CLIENTS, 8)
            assert first.propose(round_number, cohort) == second.propose(round_number, cohort)

    def test_the_order_of_the_cohort_decides_nothing(self, make):
        cohort = CLIENTS[3:15]
        forward = ready(make).propose(1, cohort)
        backward = ready(make).propose(1, cohort[::-1])
        assert dict(forward.modes) == dict(backward.modes)

    def test_the_global_random_state_decides_nothing_and_is_left_alone(self, make):
        random.seed(1)
        before = random.getstate()
        first = ready(make).propose(1, CLIENTS)
        assert random.getstate() == before
        random.seed(2)
        assert ready(make).propose(1, CLIENTS) == first

    def test_state_is_plain_and_goes_on_where_it_stood(self, make):
        allocator = ready(make)
        allocator.propose(1, CLIENTS[:6])
        state = json.loads(json.dumps(allocator.state_dict()))
        resumed = ready(make)
        resumed.load_state_dict(state)
        assert resumed.propose(2, CLIENTS[6:]) == allocator.propose(2, CLIENTS[6:])

    def test_another_allocators_state_is_refused(self, make):
        with pytest.raises(ValueError, match="incumbent"):
            ready(make).load_state_dict({"incumbent": 1})

    def test_proposing_before_begin_is_an_error(self, make):
        with pytest.raises(RuntimeError, match="begin"):
            make().propose(1, CLIENTS)


def test_every_allocator_is_listed():
    exported = {value for name in allocation.__all__ if inspect.isclass(value := getattr(allocation, name))}
    concrete = {c for c in exported if issubclass(c, Allocator) and not inspect.isabstract(c)}
    assert concrete == {type(make()) for make in ALLOCATORS.values()}
