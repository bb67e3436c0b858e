"""The benchmark of the allocator's own time: its table says what was measured, and whether the target is met."""

from dataclasses import replace

import allocator_time
import pytest

from fedhq_lightning.data import MNIST5k

from ..small_run import small_rounds
from ..trainer.conftest import make_quick


@pytest.mark.parametrize(("seconds", "verdict"), [(0.005, "0.50% (met)"), (0.02, "2.00% (missed)")])
def test_the_table(seconds, verdict):
    rounds = [replace(each, wall_seconds=1.0, allocator_seconds=seconds) for each in small_rounds(3)[1:]]
    lines = allocator_time.round_table(rounds).splitlines()
    assert len(lines) == 2 + 3 + 1
    assert lines[2].split(" | ")[1:4] == ["6", "1.0", f"{seconds:.3f}"]
    assert verdict in lines[-1]


@pytest.mark.corner
def test_a_small_run_measures_something(monkeypatch):
    allocator = allocator_time.TimedAllocator(window=1)
    monkeypatch.setattr(allocator_time, "FashionMNIST", MNIST5k)  # which needs no file of the system's
    make_quick(monkeypatch)
    rounds = allocator_time.run(allocator, clients=6, rounds=1)
    assert [len(each.clients) for each in rounds] == [6]
    assert rounds[0].allocator_seconds > 0
    assert allocator.setup_seconds > 0
