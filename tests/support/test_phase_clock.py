"""Phases add up to the whole."""

import time
from contextlib import suppress

import pytest

from fedhq_lightning.support.phase_clock import PhaseClock, phase_of_run


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands where the test puts it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_an_interrupted_phase_does_not_count_what_interrupts_it(hands: list[float]) -> None:
    clock = PhaseClock("other")
    hands[0] = 1.0
    with clock.phase("aggregate"):
        hands[0] = 3.0
        with clock.phase("fit"):
            hands[0] = 7.0
        hands[0] = 15.0
    hands[0] = 31.0
    assert clock.read() == {"other": 17.0, "aggregate": 10.0, "fit": 4.0}
    assert sum(clock.read().values()) == 31.0


def test_a_phase_ends_with_an_error(hands: list[float]) -> None:
    clock = PhaseClock("other")
    with suppress(ValueError), clock.phase("fit"):
        hands[0] = 2.0
        raise ValueError("lost")
    hands[0] = 3.0
    assert clock.read() == {"other": 1.0, "fit": 2.0}


def test_since_counts_from_a_reading_and_add_does_what_was_before(hands: list[float]) -> None:
    clock = PhaseClock("other")
    hands[0] = 2.0
    before = clock.read()
    with clock.phase("fit"):
        hands[0] = 5.0
    assert clock.since(before) == {"other": 0.0, "fit": 3.0}
    clock.add({"fit": 10.0, "save": 1.0})
    assert clock.read() == {"other": 2.0, "fit": 13.0, "save": 1.0}
    assert clock.own() == {"other": 2.0, "fit": 3.0}, "what this process took"


def test_it_may_have_begun_before_it_was_made(hands: list[float]) -> None:
    hands[0] = 5.0
    clock = PhaseClock("start", began=1.0)
    clock.go_on_with("set_up")
    hands[0] = 6.0
    assert clock.own() == {"start": 4.0, "set_up": 1.0}


def test_what_has_no_clock_finds_that_of_the_run(hands: list[float]) -> None:
    clock, begun = PhaseClock("other"), list[str]()
    clock.on_phase = begun.append
    with phase_of_run("compile"):
        hands[0] = 1.0
    with clock.measuring(), phase_of_run("compile"):
        hands[0] = 3.0
    with phase_of_run("compile"):
        hands[0] = 7.0
    assert clock.own() == {"other": 5.0, "compile": 2.0}
    assert begun == ["compile"]
