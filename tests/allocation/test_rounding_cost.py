"""When rounding counts as seen to cost."""

import json
import random

import pytest

from fedhq_lightning.allocation.rounding_cost import RoundingCost


def after(costs, sign: float = 1.0) -> RoundingCost:
    found = RoundingCost(sign)
    for cost in costs:
        found.observe(0.9, 0.9 - cost)
    return found


def test_three_evaluations_are_needed():
    assert after([0.02, 0.02]).mean is None
    assert not after([0.02, 0.02]).is_seen
    assert after([0.02, 0.02, 0.02]).is_seen
    assert after([0.02, 0.02, 0.02]).mean == pytest.approx(0.02)


@pytest.mark.parametrize("costs", [[0.0] * 9, [-0.02] * 9, [0.05, -0.04, 0.06, -0.05, 0.02, -0.01, 0.03]])
def test_nothing_or_noise_is_no_cost(costs):
    assert not after(costs).is_seen


def test_only_the_last_five_evaluations_count():
    assert after([-0.5] + [0.02] * 4).mean < 0
    assert after([-0.5] + [0.02] * 5).is_seen


def test_what_comes_before_it_counts_is_only_remembered():
    found = RoundingCost(1.0)
    for _ in range(4):
        found.observe(0.9, 0.88, counts=False)
    assert not found.is_seen
    assert found.mean == pytest.approx(0.02)
    found.observe(0.9, 0.88)
    assert found.is_seen


def test_what_was_seen_stays_seen():
    found = after([0.02] * 3 + [-0.01] * 9)
    assert found.is_seen
    assert found.mean < 0


def test_noise_alone_is_rarely_taken_for_a_cost():
    """Twenty evaluations, so sixteen looks at five of them each: chance must not decide most runs."""
    seen = 0
    for seed in range(200):
        generator = random.Random(seed)
        seen += after([generator.gauss(0, 0.01) for _ in range(20)]).is_seen
    assert seen < 60


def test_a_cost_that_falls_with_the_error_is_seen():
    found = RoundingCost(1.0)
    seen = []
    for pair in ((0.62, 0.46), (0.88, 0.72), (0.92, 0.9), (0.95, 0.91)):
        found.observe(*pair)
        seen.append(found.is_seen)
    assert seen == [False, False, False, True]


def test_a_loss_costs_where_it_grows():
    assert after([-0.1] * 3, sign=-1.0).is_seen
    assert not after([0.1] * 3, sign=-1.0).is_seen


def test_what_is_not_measured_or_not_a_number_says_nothing():
    found = RoundingCost(1.0)
    for pair in ((0.9, None), (None, 0.9), (float("nan"), 0.9), (0.9, float("inf"))):
        found.observe(*pair)
    assert not found.is_known


def test_it_goes_on_from_its_state():
    found = RoundingCost(1.0)
    found.load_state_dict(json.loads(json.dumps(after([0.02] * 2).state_dict())))
    found.observe(0.9, 0.88)
    assert found.is_seen
