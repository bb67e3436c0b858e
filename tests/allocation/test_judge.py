"""Whether a window beat its neighbours."""

import itertools
import math
import random

import pytest

from fedhq_lightning.allocation.judge import Window, compare, noise_of, scale_of

NO_SHARES = [2.0, 2.1, 2.2, 2.3, 2.4]
"""A curve that is measured as it is: not between 0 and 1."""


def windows(gains, seconds=(10.0, 10.0, 10.0)) -> list[Window]:
    """Windows one after another, with these gains."""
    values = itertools.accumulate(gains, initial=2.0)
    return [Window(each, *pair) for each, pair in zip(seconds, itertools.pairwise(values), strict=True)]


def verdict(gains, seconds=(10.0, 10.0, 10.0), curve=NO_SHARES, sign=1.0):
    before, challenger, after = windows(gains, seconds)
    return compare(challenger, before, after, curve, sign)


def test_equal_progress_is_no_difference():
    assert verdict([0.1, 0.1, 0.1]).objective == pytest.approx(0, abs=1e-6)
    assert not verdict([0.1, 0.1, 0.1]).takes_over(is_shorter=False)


def test_steady_decay_cancels():
    assert verdict([0.3, 0.2, 0.1]).objective == pytest.approx(0, abs=1e-6)


def test_the_same_gain_in_half_the_time_is_twice_as_fast():
    found = verdict([0.1, 0.1, 0.1], (10.0, 5.0, 10.0))
    assert found.objective == pytest.approx(1.0)
    assert found.takes_over(is_shorter=True)


def test_longer_rounds_must_be_ahead_beyond_noise_and_shorter_ones_only_not_behind_it():
    noisy = [2.0, 2.2, 2.1, 2.3, 2.2, 2.4]
    ahead, behind = verdict([0.1, 0.3, 0.1], curve=noisy), verdict([0.1, 0.0, 0.1], curve=noisy)
    assert 0 < ahead.deviations < 1
    assert -1 < behind.deviations < 0
    assert [each.takes_over(is_shorter=False) for each in (ahead, behind)] == [False, False]
    assert [each.takes_over(is_shorter=True) for each in (ahead, behind)] == [True, True]
    assert verdict([0.1, 2.0, 0.1], curve=noisy).takes_over(is_shorter=False)
    assert not verdict([0.1, -1.0, 0.1], curve=noisy).takes_over(is_shorter=True)


def test_smaller_is_better_where_the_sign_says_so():
    assert verdict([0.1, 0.2, 0.1], sign=1.0).objective > 0
    assert verdict([0.1, 0.2, 0.1], sign=-1.0).objective < 0


def test_where_nothing_moves_noise_is_the_scale():
    assert abs(verdict([0.0, 0.001, 0.0], curve=[2.0, 2.01, 2.0, 2.01, 2.0]).objective) <= 0.1


def test_a_jump_cannot_leave_the_range():
    assert verdict([1e-9, 100.0, 1e-9]).objective == 2.0
    assert verdict([1e-9, -100.0, 1e-9]).objective == -2.0


def test_before_noise_is_known_nothing_is_said():
    assert verdict([0.1, 9.0, 0.1], curve=[2.0, 2.1, 2.2]).objective == 0.0


def test_the_deviation_is_that_of_the_four_evaluations():
    generator = random.Random(0)
    lengths = (4.0, 7.0, 5.0)
    curve = [100 + generator.gauss(0, 0.3) for _ in range(2000)]
    found = []
    for _ in range(5000):
        a, b, c, d = (100 + generator.gauss(0, 0.3) for _ in range(4))
        trial = compare(Window(lengths[1], b, c), Window(lengths[0], a, b), Window(lengths[2], c, d), curve[:50], 1.0)
        found.append(trial.deviations)
    measured = sum(each**2 for each in found) / len(found)
    assert math.sqrt(measured) == pytest.approx(0.3 / noise_of(curve[:50]), rel=0.05)


class TestScale:
    def test_shares_are_measured_by_what_is_left_of_the_error(self):
        scaled = scale_of([0.1, 0.9], 1.0)
        assert scaled(0.98) - scaled(0.96) == pytest.approx(math.log(2))
        assert scaled(1.0) == pytest.approx(-math.log(1e-3))

    def test_losses_are_measured_by_ratios(self):
        scaled = scale_of([2.3, 0.4], -1.0)
        assert scaled(0.2) - scaled(0.4) == pytest.approx(math.log(2))

    @pytest.mark.parametrize(("curve", "sign"), [([0.1, 1.4], 1.0), ([0.3, -0.1], -1.0)])
    def test_anything_else_is_taken_as_it_is(self, curve, sign):
        assert scale_of(curve, sign)(3.0) == 3.0 * sign


@pytest.mark.parametrize("trend", [lambda k: 0.0, lambda k: 0.03 * k, lambda k: 1 - math.exp(-k / 60)])
def test_noise_is_found_whatever_the_trend(trend):
    generator = random.Random(3)
    values = [trend(k) + generator.gauss(0, 0.02) for k in range(400)]
    assert noise_of(values) == pytest.approx(0.02, rel=0.2)


def test_few_values_tell_no_noise():
    assert noise_of([0.1, 0.2, 0.3]) == math.inf
    assert 0 < noise_of([0.1, 0.2, 0.3, 0.4]) < 1e-6
