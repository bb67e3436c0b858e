"""When the hybrid allocator begins QAT."""

import json
from dataclasses import replace

from .played import CLIENTS, cohort, play, ready, record


def modes_of(plans) -> list[set[str]]:
    return [set(plan.modes.values()) for plan in plans]


class TestByNoise:
    """The coarse rule: by what rounding destroys."""

    def test_ptq_comes_first_where_rounding_destroys_much(self):
        allocator = ready(qat_from=None, fine=False)
        assert "destroys 10.0% of the power" in allocator.explanation
        assert "QAT begins in round 16, PTQ is for everybody before" in allocator.explanation
        plans = play(allocator, range(1, 31), metric=0.5)
        assert modes_of(plans)[:15] == [{"ptq"}] * 15
        assert all("qat" in modes for modes in modes_of(plans)[15:])

    def test_it_begins_at_once_where_rounding_destroys_nothing(self):
        allocator = ready({"sensitivity": lambda *_: 1e-4}, qat_from=None, fine=False)
        assert (
            "destroys 0.0% of the power of the initial model's output, so QAT begins at once." in allocator.explanation
        )
        assert allocator.propose(1, CLIENTS).counts()["qat"] > 0

    def test_it_can_be_given(self):
        allocator = ready(qat_from=0.1)
        assert "As was given, QAT begins in round 4" in allocator.explanation
        assert [plan.counts()["qat"] > 0 for plan in play(allocator, range(1, 5))] == [False, False, False, True]


class TestByProof:
    """The fine adjustment: not before rounding is seen to cost."""

    def ready(self, noise=0.01, **changes):
        return ready({"sensitivity": lambda *_: noise, **changes}, qat_from=None)

    def test_where_rounding_costs_nothing_nobody_trains_in_qat(self):
        allocator = self.ready()
        assert "QAT begins in round 4 at the earliest, and only once the deployed" in allocator.explanation
        plans = play(allocator, range(1, 31))
        assert modes_of(plans) == [{"ptq"}] * 30
        assert "rounding is not seen to cost anything" in plans[-1].reason

    def test_where_it_costs_qat_begins_after_three_evaluations(self):
        plans = play(self.ready(), range(1, 31), cost=0.02)
        assert modes_of(plans)[:3] == [{"ptq"}] * 3
        assert "qat" in modes_of(plans)[3]
        assert plans[3].logged["rounding_cost"] > 0.019

    def test_not_before_the_round_that_the_coarse_rule_says(self):
        plans = play(self.ready(noise=0.1), range(1, 31), cost=0.02)
        assert modes_of(plans)[:15] == [{"ptq"}] * 15
        assert "qat" in modes_of(plans)[15]

    def test_what_a_model_costs_that_has_hardly_trained_is_no_proof(self):
        allocator = self.ready(noise=0.1)
        plans = play(allocator, range(1, 9), cost=0.02) + play(allocator, range(9, 31), cost=-0.02)
        assert modes_of(plans) == [{"ptq"}] * 30

    def test_a_smaller_value_may_be_the_better_one(self):
        assert modes_of(play(self.ready(monitor_mode="min"), range(1, 31), cost=0.02)) == [{"ptq"}] * 30
        assert {"ptq", "qat"} in modes_of(play(self.ready(monitor_mode="min"), range(1, 31), cost=-0.02))

    def test_where_nothing_tells_what_rounding_costs_it_does_not_wait(self):
        allocator = self.ready(eval_every_n_rounds=5)
        plans = []
        for number in range(1, 10):
            plans.append(allocator.propose(number, cohort(number)))
            allocator.observe(replace(record(number, plans[-1]), metric_fp=None))
        assert modes_of(plans)[:5] == [{"ptq"}] * 5
        assert "qat" in modes_of(plans)[5]

    def test_a_run_too_short_to_see_anything_does_not_wait(self):
        allocator = self.ready(max_rounds=3, noise=1e-4)
        assert "QAT begins at once" in allocator.explanation
        assert allocator.propose(1, CLIENTS).counts()["qat"] > 0


class TestResume:
    def test_a_resumed_run_begins_when_the_first_one_would(self):
        first = ready(qat_from=None)
        # Set-up need not measure the same to the last bit on another machine.
        resumed = ready({"resumes": True, "sensitivity": lambda *_: 0.01}, qat_from=None)
        resumed.load_state_dict(first.state_dict())
        assert [resumed.propose(number, CLIENTS).modes for number in (15, 16)] == [
            first.propose(number, CLIENTS).modes for number in (15, 16)
        ]

    def test_what_rounding_was_seen_to_cost_goes_on(self):
        def by_proof():
            return ready({"sensitivity": lambda *_: 0.1}, qat_from=None)

        whole = play(by_proof(), range(1, 25), cost=0.02)
        first = by_proof()
        play(first, range(1, 8), cost=0.02)
        resumed = by_proof()
        resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert play(resumed, range(8, 25), cost=0.02) == whole[7:]
        assert {"ptq", "qat"} in modes_of(whole)
