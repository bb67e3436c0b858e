"""When the hybrid allocator begins QAT."""

from .played import CLIENTS, play, ready


class TestStart:
    def test_ptq_comes_first_where_rounding_destroys_much(self):
        allocator = ready(qat_from=None)
        assert "destroys 10.0% of the power" in allocator.explanation
        assert "qat begins in round 16, ptq is for everybody before" in allocator.explanation
        plans = play(allocator, range(1, 31), metric=0.5)
        modes = [set(plan.modes.values()) for plan in plans]
        assert modes[:15] == [{"ptq"}] * 15
        assert {"ptq", "qat"} in modes[15:]
        # No boundary was on trial while none counted.
        assert {plan.logged["trial"] for plan in plans[:16]} == {0}
        assert {plan.logged["seconds"] for plan in plans[:15]} == {0.0}
        assert all(plan.logged["seconds"] > 0 for plan in plans[15:])

    def test_it_begins_at_once_where_rounding_destroys_nothing(self):
        allocator = ready({"sensitivity": lambda *_: 1e-4}, qat_from=None)
        assert (
            "destroys 0.0% of the power of the initial model's output, so qat begins at once." in allocator.explanation
        )
        assert allocator.propose(1, CLIENTS).counts()["qat"] > 0

    def test_it_can_be_given(self):
        allocator = ready(qat_from=0.1)
        assert "As was given, qat begins in round 4" in allocator.explanation
        assert [plan.counts()["qat"] > 0 for plan in play(allocator, range(1, 5))] == [False, False, False, True]

    def test_a_resumed_run_begins_when_the_first_one_would(self):
        first = ready(qat_from=None)
        # Set-up need not measure the same to the last bit on another machine.
        resumed = ready({"resumes": True, "sensitivity": lambda *_: 0.01}, qat_from=None)
        resumed.load_state_dict(first.state_dict())
        assert [resumed.propose(number, CLIENTS).modes for number in (15, 16)] == [
            first.propose(number, CLIENTS).modes for number in (15, 16)
        ]
