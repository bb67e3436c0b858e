import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.objectives import Objective
from fedhq_lightning.experiments.pruning import Progress, PruningRule

METRIC, SECONDS = Objective("metric_quantized", "max"), Objective("virtual_seconds", "min")
RULE = PruningRule(startup_trials=3, warmup_rounds=0)


def progress(number, metrics, seconds_a_round=1.0, done=True):
    rounds = {
        index: {"metric_quantized": metric, "virtual_seconds": index * seconds_a_round}
        for index, metric in enumerate(metrics, start=1)
    }
    values = {"metric_quantized": metrics[-1], "virtual_seconds": len(metrics) * seconds_a_round} if done else {}
    return Progress(number, rounds, values)


FINISHED = [
    progress(0, [0.5, 0.6, 0.7, 0.8]),
    progress(1, [0.6, 0.7, 0.8, 0.9], 2.0),
    progress(2, [0.2, 0.3, 0.4, 0.5], 0.5),
]


def judge(metrics, seconds_a_round, objectives=(METRIC, SECONDS), rule=RULE, finished=FINISHED, max_rounds=4):
    return rule.judge(progress(9, metrics, seconds_a_round, done=False), finished, objectives, max_rounds)[0]


def test_prunes_what_is_behind_and_no_cheaper():
    assert judge([0.4, 0.5], 1.0)
    assert judge([0.4, 0.5], 5.0)
    reason = RULE.judge(progress(9, [0.4, 0.5], done=False), FINISHED, (METRIC, SECONDS), 4)[1]
    assert reason.startswith("after round 2 of 4: metric_quantized 0.5000 is behind the best 50 % of 3 trials, and tri")


def test_spares_what_may_be_better_in_another_objective():
    # Worse than the median, but better than the only trial that costs no more: it may come to lie on the front.
    assert not judge([0.4, 0.5], 0.9)
    assert judge([0.2, 0.25], 0.9), "trial 2 is better and costs less"
    assert not judge([0.2, 0.25], 0.4), "cheaper than every other"
    assert judge([0.4, 0.5], 0.9, objectives=(METRIC,)), "with one objective it is Optuna's rule"


def test_costs_are_those_that_the_trial_is_heading_for():
    """Rounds may be searched too: 2 of 2 rounds for 1 s each are cheaper than trial 0, 2 of 8 are not."""
    assert not judge([0.4, 0.5], 1.0, max_rounds=2)
    assert judge([0.4, 0.5], 1.0, max_rounds=8)


def test_spares_the_better_half_startup_and_warmup():
    assert not judge([0.5, 0.6], 1.0)
    assert not judge([0.4, 0.5], 1.0, finished=FINISHED[:2])
    assert not judge([0.4, 0.5], 1.0, rule=PruningRule(startup_trials=3, warmup_rounds=2))
    assert judge([0.4, 0.5, 0.5], 1.0, rule=PruningRule(startup_trials=3, warmup_rounds=2))
    assert not judge([0.4, 0.5], 1.0, rule=PruningRule(percentile=90, startup_trials=3))


def test_smaller_metrics_may_be_better():
    loss = Objective("metric_quantized", "min")
    assert judge([0.9, 0.8], 1.0, objectives=(loss,))
    assert not judge([0.3, 0.2], 1.0, objectives=(loss,))


def test_best_value_so_far_counts():
    assert not judge([0.65, 0.1], 1.0), "as in Optuna: one bad round is no reason"


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ((SECONDS,), "pruning judges a metric, and metric_quantized or metric_fp is not among the objectives"),
        ((METRIC, Objective("late", "min")), "pruning: late is not known before a run's end"),
        ((METRIC, Objective("uplink_bytes", "max")), "uplink_bytes with direction max"),
    ],
)
def test_refuses_objectives_that_it_cannot_judge(objectives, words):
    with pytest.raises(ConfigurationError, match=words):
        RULE.check(objectives)
