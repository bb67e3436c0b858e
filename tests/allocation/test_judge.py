"""Whether a window beat its neighbours."""

import itertools
import math
import random

import pytest

from fedhq_lightning.allocation.judge import Verdict, Window, compare, confidence, noise_of


def test_equal_progress_is_no_difference():
    verdict = compare(Window(10, 0.1), Window(10, 0.1), Window(10, 0.1), noise=0.01)
    assert verdict.objective == 0
    assert verdict.ahead == 0


def test_steady_decay_cancels():
    verdict = compare(Window(10, 0.2), Window(10, 0.3), Window(10, 0.1), noise=0.01)
    assert verdict.objective == pytest.approx(0, abs=1e-12)


def test_the_same_gain_in_half_the_time_is_ahead():
    verdict = compare(Window(5, 0.1), Window(10, 0.1), Window(10, 0.1), noise=0.001)
    assert verdict.objective == pytest.approx(1.0)
    assert verdict.ahead == pytest.approx(0.05)


def test_where_nothing_moves_noise_is_the_scale():
    verdict = compare(Window(10, 0.001), Window(10, 0.0), Window(10, 0.0), noise=0.01)
    assert abs(verdict.objective) <= 0.1


def test_a_jump_cannot_leave_the_range():
    assert compare(Window(1, 100.0), Window(1, 1e-9), Window(1, 1e-9), noise=1e-9).objective == 5.0


def test_a_value_that_is_no_number_gives_no_verdict():
    assert math.isnan(compare(Window(1, math.nan), Window(1, 0.1), Window(1, 0.1), 0.1).objective)


def test_the_variance_is_that_of_the_four_evaluations():
    generator = random.Random(0)
    lengths = (4.0, 7.0, 5.0)
    ahead = []
    for _ in range(20_000):
        a, b, c, d = (generator.gauss(0, 0.3) for _ in range(4))
        verdict = compare(Window(lengths[1], c - b), Window(lengths[0], b - a), Window(lengths[2], d - c), 0.3)
        ahead.append(verdict.ahead)
    measured = sum(each**2 for each in ahead) / len(ahead)
    assert verdict.variance == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("trend", [lambda k: 0.0, lambda k: 0.03 * k, lambda k: 1 - math.exp(-k / 60)])
def test_noise_is_found_whatever_the_trend(trend):
    generator = random.Random(3)
    values = [trend(k) + generator.gauss(0, 0.02) for k in range(400)]
    assert noise_of(values) == pytest.approx(0.02, rel=0.2)


def test_a_single_jump_does_not_pass_for_noise():
    values = [0.01 * k + (0.5 if k > 30 else 0) for k in range(60)]
    assert noise_of(values) < 1e-6


def test_last_digits_are_noise():
    values = [0.1 * k for k in range(8)]
    gains = [b - a for a, b in itertools.pairwise(values)]
    before, challenger, after = (Window(0.3, gain) for gain in gains[-3:])
    assert challenger.gain != before.gain  # though only by how 0.1 is stored
    assert abs(confidence([compare(challenger, before, after, noise_of(values))])) < 0.5


def test_too_few_values_tell_nothing():
    assert noise_of([0.1, 0.2, math.nan, 0.3]) == math.inf


def test_confidence_adds_up_windows():
    one = Verdict(1.0, 0.02, 0.01**2)
    assert confidence([one]) == pytest.approx(2)
    assert confidence([one] * 4) == pytest.approx(4)
    assert confidence([]) == 0
    assert confidence([Verdict(1.0, 0.02, math.inf)]) == 0
