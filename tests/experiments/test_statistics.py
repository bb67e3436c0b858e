"""Curves and pairs, against values worked out by hand."""

import math

import pytest

from fedhq_lightning.experiments.statistics import (
    Duration,
    Spread,
    final_mean,
    paired_difference,
    paired_ratio,
    signed_rank_p,
    time_to,
    trailing_means,
    value_at,
)


def test_trailing_means():
    assert trailing_means([1.0, 2.0, 6.0, 4.0]) == [None, None, 3.0, 4.0]
    assert trailing_means([1.0, 2.0]) == [None, 1.5]
    assert trailing_means([]) == []


def test_final_mean():
    assert final_mean([9.0, 1.0, 2.0, 6.0]) == 3.0
    assert final_mean([1.0, 3.0]) == 2.0
    assert math.isnan(final_mean([]))


class TestValueAt:
    TIMES, VALUES = (0.0, 10.0, 20.0, 30.0, 40.0), (0.1, 0.5, 0.9, 0.7, 0.2)

    @pytest.mark.parametrize(
        ("at", "value"),
        [(5, 0.1), (10, 0.5), (19.9, 0.5), (20, 0.7), (30, 0.7), (35, 0.7), (40, 0.6), (99, 0.6)],
    )
    def test_the_last_evaluations_until_then(self, at, value):
        assert value_at(self.TIMES, self.VALUES, at) == pytest.approx(value)

    def test_the_end_of_a_run_is_not_lost_to_rounding(self):
        times = [sum([0.1] * count) for count in range(1, 9)]
        assert value_at(times, list(range(8)), 0.8, window=1) == 7

    def test_nothing_until_then(self):
        assert math.isnan(value_at([1.0], [1.0], 0.5))


class TestTimeTo:
    TIMES, VALUES = (1.0, 2.0, 3.0, 4.0, 5.0), (0.9, 0.3, 0.6, 0.9, 0.9)

    def test_first_time_at_which_the_mean_is_there(self):
        # Means from the third on: 0.6, 0.6, 0.8. The 0.9 at time 1 is one value alone.
        assert time_to(self.TIMES, self.VALUES, 0.6 - 1e-12) == Duration(3.0)
        assert time_to(self.TIMES, self.VALUES, 0.7) == Duration(5.0)

    def test_never_reached_is_censored_at_the_end(self):
        assert time_to(self.TIMES, self.VALUES, 0.85) == Duration(5.0, is_censored=True)
        assert time_to([], [], 0.5) == Duration(0.0, is_censored=True)

    def test_smaller_may_be_better(self):
        assert time_to(self.TIMES, [3.0, 2.0, 1.0, 0.0, 0.0], 1.0, larger_is_better=False) == Duration(4.0)

    def test_not_a_number_is_not_reaching_it(self):
        assert time_to([1.0], [math.nan], 0.5) == Duration(1.0, is_censored=True)


def test_spread():
    assert Spread.of([1.0, 2.0, 3.0, 4.0]) == Spread(2.5, pytest.approx(math.sqrt(5 / 3)), 4)
    assert Spread.of([7.0]) == Spread(7.0, 0.0, 1)
    assert math.isnan(Spread.of([]).mean)
    assert Spread.of_durations([Duration(4.0), Duration(8.0, True)]) == Spread(6.0, pytest.approx(math.sqrt(8)), 2, 1)


class TestPairedDifference:
    def test_by_hand(self):
        # Differences 1, 2, 3: mean 2, deviation 1, error 1/sqrt(3), t = 3.4641 with 2 degrees of freedom; of those the
        # distribution is 1/2 + t / (2 sqrt(2 + t^2)), and 97.5 % lie below 4.302653.
        found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        assert (found.mean, found.deviation, found.count) == (2.0, 1.0, 3)
        assert found.p_t == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))
        assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
        assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
        assert not found.is_beyond_noise
        assert math.isnan(found.p_wilcoxon)

    def test_equals_scipy(self):
        from scipy.stats import ttest_rel, wilcoxon

        first, second = [0.91, 0.88, 0.95, 0.90, 0.87, 0.93], [0.90, 0.85, 0.91, 0.905, 0.81, 0.91]
        found = paired_difference(first, second)
        expected = ttest_rel(first, second)
        interval = expected.confidence_interval(0.95)
        assert found.p_t == pytest.approx(expected.pvalue)
        assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
        assert found.p_wilcoxon == pytest.approx(wilcoxon(first, second).pvalue)

    def test_beyond_noise(self):
        assert paired_difference([1.0, 1.1, 0.9], [0.0, 0.0, 0.0]).is_beyond_noise
        assert paired_difference([0.0, 0.0, 0.0], [1.0, 1.1, 0.9]).is_beyond_noise

    def test_without_spread(self):
        assert paired_difference([1.0] * 3, [1.0] * 3).p_t == 1.0
        assert paired_difference([2.0] * 3, [1.0] * 3).p_t == 0.0

    @pytest.mark.parametrize("pairs", [1, 2])
    def test_fewer_than_three_pairs_tell_no_noise(self, pairs):
        found = paired_difference([2.0] * pairs, [1.0] * pairs)
        assert found.mean == 1.0
        assert math.isnan(found.p_t)
        assert not found.is_beyond_noise

    def test_no_pairs(self):
        assert math.isnan(paired_difference([], []).mean)

    def test_pairs_have_two_sides(self):
        with pytest.raises(ValueError, match="zip"):
            paired_difference([1.0], [])


def test_signed_ranks():
    # All of five on one side: 2 of 32 outcomes are as extreme.
    assert signed_rank_p([1, 2, 3, 4, 5]) == 2 / 32
    # Ranks 1, 2, 3 with the smallest negative: sums 0, 1 and 5, 6 are as extreme as 5.
    assert signed_rank_p([-1, 2, 3]) == 4 / 8
    # Ties share ranks 1.5; a zero is left out: the sum 3 is the largest of 0, 1.5, 1.5, 3.
    assert signed_rank_p([2, 2, 0]) == 2 / 4
    assert signed_rank_p([0, 0]) == 1.0
    assert signed_rank_p([float(each) for each in range(1, 21)]) < 0.001


class TestPairedRatio:
    def test_geometric_mean_of_pairs(self):
        found = paired_ratio(
            [Duration(1.0), Duration(8.0), Duration(3.0)], [Duration(2.0), Duration(4.0), Duration(3.0)]
        )
        assert found.mean == pytest.approx(1.0)
        assert found.low < 0.5
        assert found.high == pytest.approx(1 / found.low)
        assert (found.count, found.first_censored, found.second_censored) == (3, 0, 0)

    def test_censored_pairs_are_counted_and_left_out(self):
        first = [Duration(1.0), Duration(9.0, True), Duration(3.0), Duration(9.0, True)]
        second = [Duration(2.0), Duration(3.0), Duration(9.0, True), Duration(9.0, True)]
        found = paired_ratio(first, second)
        assert found.mean == pytest.approx(0.5)
        assert math.isnan(found.low)
        assert (found.count, found.first_censored, found.second_censored) == (1, 2, 1)

    def test_no_usable_pair(self):
        assert math.isnan(paired_ratio([Duration(1.0, True)], [Duration(1.0)]).mean)
