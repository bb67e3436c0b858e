"""QAT for all at the end of a run, in PTQ's time."""

import math
from typing import Any

import pytest

from fedhq_lightning.allocation import AllocationContext, Allocator, LateQatAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import ClientId, Plan

from ..small_federation import SmallData
from ..trainer.runs import fit, records

SECONDS = {"a": 10.0, "b": 4.0, "c": 2.0}
"""In ptq, of which one is the link; qat computes twice as long."""


def begun(max_rounds: int = 20, **settings: Any) -> LateQatAllocator:
    known = {name: settings.pop(name) for name in ("fits", "round_deadline") if name in settings}
    allocator = LateQatAllocator(**settings)
    allocator.begin(
        AllocationContext(
            list(SECONDS),
            0,
            lambda client_id, mode: SECONDS[str(client_id)] * (2 if mode == "qat" else 1) - (mode == "qat"),
            link_seconds=lambda client_id: 1.0,
            num_steps=lambda client_id: 10,
            max_rounds=max_rounds,
            **known,
        )
    )
    return allocator


@pytest.mark.parametrize(
    ("max_rounds", "share", "first"),
    [(20, 0.2, 17), (40, 0.2, 33), (10, 0.2, 7), (3, 0.2, 1), (20, 1.0, 1), (9, 0, 10)],
)
def test_qat_begins_where_its_share_of_the_rounds_does(max_rounds: int, share: float, first: int) -> None:
    allocator = begun(max_rounds, share=share)
    begins = [number for number in range(1, max_rounds + 1) if allocator.propose(number, list("abc")).counts()["qat"]]
    assert begins == list(range(first, max_rounds + 1))


def test_slow_clients_take_as_many_steps_as_there_is_time_for() -> None:
    """The slowest has 9 s of 18 s; the others are done in time."""
    plan = begun().propose(20, list("abc"))
    assert set(plan.modes.values()) == {"qat"}
    assert plan.work == {"a": pytest.approx(0.5)}
    assert begun().propose(20, ["b", "c"]).work == {"b": pytest.approx(0.5)}
    assert begun(budget=math.inf).propose(20, list("abc")).work == {}
    assert begun(budget=0.5).propose(20, list("abc")).work == {"a": pytest.approx(14 / 18)}


def test_who_has_no_time_for_a_step_or_cannot_hold_it_stays_in_ptq() -> None:
    plan = begun(round_deadline=2.5).propose(20, list("abc"))
    assert plan.modes == {"a": "ptq", "b": "qat", "c": "qat"}
    assert plan.work == {"b": pytest.approx(1.5 / 6), "c": pytest.approx(1.5 / 2)}
    assert begun(fits=lambda client_id, mode: client_id != "b").propose(20, list("abc")).modes["b"] == "ptq"


def test_learning_rates() -> None:
    assert begun(lr_factor=0.3).propose(16, list("abc")).lr_factors == {}
    assert begun(lr_factor=0.3).propose(17, list("abc")).lr_factors == {"qat": 0.3, "ptq": 0.3}


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"share": 1.5}, "share 1.5"), ({"budget": -1}, "budget -1"), ({"budget": math.nan}, "budget nan"),
     ({"lr_factor": 0}, "lr_factor 0"), ({"share": True}, "share True")],
)  # fmt: skip
def test_numbers_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LateQatAllocator(**settings)


@pytest.mark.usefixtures("no_program")
class TestRun:
    """What a plan says of local steps and learning rates is done."""

    def test_no_round_lasts_longer_than_in_ptq(self) -> None:
        settings: dict[str, Any] = {"scheme": "w4a8", "fleet": "mixed", "max_rounds": 6, "local_steps": 12}
        sizes = (40, 40, 40, 40, 40, 40)
        late, _ = fit(data=SmallData(sizes), callbacks=LateQatAllocator(), **settings)
        ptq, _ = fit(data=SmallData(sizes), callbacks=LateQatAllocator(share=0), **settings)
        for mine, other in zip(records(late), records(ptq), strict=True):
            assert mine.virtual_seconds <= other.virtual_seconds * (1 + 1e-9)
        last = records(late)[-1]
        assert last.mode_counts["qat"] == 6
        steps = sorted({client.num_steps for client in last.clients})
        assert steps[0] < 12 == steps[-1]

    @pytest.mark.parametrize("length", [{"local_steps": 8}, {"local_epochs": 4}])
    def test_a_share_of_a_fit_is_its_beginning(self, length: dict[str, int]) -> None:
        """Of sixteen examples in batches of eight: two steps an epoch, and time as for a fit of so many steps."""

        class Half(Allocator):
            def propose(self, round_number: int, cohort: Any) -> Plan:
                return Plan(dict.fromkeys(cohort, "ptq"), work={"a": 0.45})

        data = SmallData({"a": 16, "b": 16})
        half, _ = fit(data=data, callbacks=Half(), scheme="w4a8", max_rounds=1, **length)
        three, _ = fit(data=data, callbacks=LateQatAllocator(share=0), scheme="w4a8", max_rounds=1, local_steps=3)
        shorter, whole = records(half)[1].clients
        assert (shorter.num_steps, whole.num_steps) == (3, 8)
        assert shorter.compute_seconds == records(three)[1].clients[0].compute_seconds
        assert shorter.metrics == records(three)[1].clients[0].metrics

    def test_learning_rates_are_scaled(self) -> None:
        class Scaled(Allocator):
            def propose(self, round_number: int, cohort: Any) -> Plan:
                return Plan(dict.fromkeys(cohort, "ptq"), lr_factors={"ptq": 0.25})

        from ..small_federation import SmallModule, same_bits

        settings: dict[str, Any] = {"scheme": "w4a8", "max_rounds": 1}
        _, scaled = fit(SmallModule(lr=0.4), callbacks=Scaled(), **settings)
        _, plain = fit(SmallModule(lr=0.1), callbacks=LateQatAllocator(share=0), **settings)
        assert same_bits(scaled, plain)

    @pytest.mark.parametrize(
        ("plan", "words"),
        [
            ({"work": {0: 0.0}}, "planned work 0.0 for client 0"),
            ({"work": {"x": 0.5}}, "planned work 0.5 for client 'x'"),
            ({"lr_factors": {"ptq": 0.0}}, "learning-rate factor 0.0 for ptq"),
            ({"lr_factors": {"int4": 1.0}}, "planned mode 'int4'"),
        ],
    )
    def test_what_a_plan_cannot_say_is_refused(self, plan: dict[str, Any], words: str) -> None:
        class Odd(Allocator):
            def propose(self, round_number: int, cohort: Any) -> Plan:
                modes: dict[ClientId, Any] = dict.fromkeys(cohort, "ptq")
                return Plan(modes, **plan)

        with pytest.raises(ConfigurationError, match=words):
            fit(callbacks=Odd(), scheme="w4a8", max_rounds=1)
