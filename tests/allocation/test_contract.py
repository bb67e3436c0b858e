"""Every allocator that is shipped keeps to the contract, as itself and as a callback."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedhq_lightning.allocation as allocation
import fedhq_lightning.callbacks as callbacks
from fedhq_lightning.allocation import (
    Allocator,
    FixedAllocator,
    FreeQatAllocator,
    HybridAllocator,
    LateQatAllocator,
    MatchedRandomAllocator,
)
from fedhq_lightning.testing import AllocatorContract
from fedhq_lightning.types import MODES

from .references import write_reference

CLIENTS = AllocatorContract.client_ids


def reference() -> str:
    """A run with every client in each round, a third of them in qat."""
    modes = {client_id: "qat" if i % 3 == 0 else "ptq" for i, client_id in enumerate(CLIENTS)}
    return write_reference(
        Path("reference"),
        [modes] * AllocatorContract.max_rounds,
        tier=lambda client_id: f"tier {CLIENTS.index(client_id) % 2}",
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
    "late-qat": LateQatAllocator,
    "hybrid": HybridAllocator,
    "hybrid-from-the-start": lambda: HybridAllocator(qat_from=0.0, window=1, slowdown=0.1, sensitivity="sqnr"),
    "hybrid-coarse": lambda: HybridAllocator(fine=False, divergence="hellinger"),
    "hybrid-by-updates": lambda: HybridAllocator(qat_from=0.0, window=1, divergence="updates"),
    "hybrid-without-data": lambda: HybridAllocator(divergence=None, window=1),
    "random-matched-in-total": lambda: MatchedRandomAllocator(reference()),
    "random-matched-per-tier": lambda: MatchedRandomAllocator(reference(), per="tier"),
}
CALLBACKS: dict[str, Callable[[], Any]] = {
    "fixed-callback": lambda: callbacks.FixedAllocator(0.5),
    "free-qat-callback": callbacks.FreeQatAllocator,
    "late-qat-callback": callbacks.LateQatAllocator,
    "hybrid-callback": lambda: callbacks.HybridAllocator(qat_from=0.0, window=1),
    "random-matched-callback": lambda: callbacks.MatchedRandomAllocator(reference()),
}
SHIPPED = ALLOCATORS | CALLBACKS


class TestEveryAllocator(AllocatorContract):
    """Beside the contract: what this package promises of its own."""

    @pytest.fixture(autouse=True, params=SHIPPED.values(), ids=SHIPPED.keys())
    def _shipped(self, request: pytest.FixtureRequest) -> None:
        self._make = request.param

    def make(self) -> Allocator:
        return self._make()

    def test_a_plan_says_why(self) -> None:
        assert all(plan.reason for plan in self.play(self.begun(), range(1, self.max_rounds + 1)))

    def test_a_foreign_state_is_named(self) -> None:
        with pytest.raises(ValueError, match="incumbent"):
            self.begun().load_state_dict({"incumbent": 1})

    def test_proposing_before_begin_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="begin"):
            self.make().propose(1, self.cohort(1))


def test_every_allocator_is_listed() -> None:
    exported = {value for name in allocation.__all__ if inspect.isclass(value := getattr(allocation, name))}
    concrete = {c for c in exported if issubclass(c, Allocator) and not inspect.isabstract(c)}
    assert concrete == {type(make()) for make in ALLOCATORS.values()}


def test_every_allocator_callback_is_listed() -> None:
    exported = {value for name in callbacks.__all__ if inspect.isclass(value := getattr(callbacks, name))}
    concrete = {c for c in exported if issubclass(c, Allocator) and not inspect.isabstract(c)}
    assert concrete == {type(make()) for make in CALLBACKS.values()}
