"""Who is on which side of the boundary, and with how many steps."""

import math

import pytest

from fedhq_lightning.allocation.boundary import (
    Allotment,
    Boundary,
    ClientFacts,
    allot,
    least_round_seconds,
    risk_level,
    round_seconds,
)
from fedhq_lightning.errors import ConfigurationError

COHORT = {
    "slow": ClientFacts(ptq_seconds=10.0, qat_seconds=13.0, risk=0.2),
    "risky": ClientFacts(ptq_seconds=9.0, qat_seconds=12.0, risk=0.9),
    "fast": ClientFacts(ptq_seconds=2.0, qat_seconds=4.0, risk=0.1),
    "small": ClientFacts(ptq_seconds=1.0, qat_seconds=2.0, risk=0.8, can_qat=False),
}
RISKS = [each.risk for each in COHORT.values()]


def allotted(slack: float, share: float, least_work: float = 0.5, **how) -> Allotment:
    return allot(Boundary(slack, share), COHORT, risk_level(RISKS, share), least_work, **how)


def in_qat(slack: float, share: float, least_work: float = 0.5, **how) -> set[object]:
    modes = allotted(slack, share, least_work, **how).modes
    assert set(modes.values()) <= {"ptq", "qat"}
    return {client_id for client_id, mode in modes.items() if mode == "qat"}


def test_with_all_steps_asked_for_qat_goes_to_whom_it_costs_no_round_time():
    assert in_qat(0, 0, least_work=1) == {"fast"}
    assert allotted(0, 0, least_work=1).work == {}


def test_who_is_too_slow_for_all_steps_in_qat_takes_as_many_as_fit():
    found = allotted(0, 0)
    assert found.seconds == 10.0
    assert found.modes == {"slow": "qat", "risky": "qat", "fast": "qat", "small": "ptq"}
    assert found.work == {"slow": pytest.approx(10 / 13), "risky": pytest.approx(10 / 12)}


def test_who_could_not_take_enough_of_them_trains_in_ptq():
    assert in_qat(0, 0, least_work=0.8) == {"risky", "fast"}
    assert allotted(0, 0, least_work=0.8).work == {"risky": pytest.approx(10 / 12)}


def test_slack_lets_in_whoever_is_done_in_the_longer_round():
    assert in_qat(0.2, 0, least_work=1) == {"fast", "risky"}
    assert in_qat(0.3, 0, least_work=1) == {"fast", "risky", "slow"}


def test_slack_below_0_shortens_rounds_by_cutting_the_steps_of_slow_clients():
    found = allotted(-0.4, 0)
    assert found.modes == {"slow": "ptq", "risky": "qat", "fast": "qat", "small": "ptq"}
    assert found.work == {"slow": pytest.approx(0.6), "risky": pytest.approx(0.5)}
    assert round_seconds(COHORT, found) == pytest.approx(6.0)


def test_nobody_takes_less_than_the_least_work():
    found = allotted(-0.9, 0)
    assert min(found.work.values()) == 0.5
    assert round_seconds(COHORT, found) == 5.0


def test_fewer_steps_do_not_make_the_link_faster():
    far = ClientFacts(ptq_seconds=10.0, qat_seconds=13.0, risk=0.0, fixed_seconds=4.0)
    assert allot(Boundary(-0.3, 0), {"far": far}, math.inf, 0.1).work == {"far": pytest.approx(3 / 9)}
    assert far.seconds("qat", 3 / 9) == pytest.approx(7.0)
    assert allot(Boundary(-0.7, 0), {"far": far}, math.inf, 0.1).work == {"far": 0.1}


def test_before_qat_begins_everybody_trains_in_ptq():
    assert in_qat(0, 0.25, qat=False) == set()
    assert allotted(0, 0, qat=False).work == {}
    assert allotted(-0.4, 0, qat=False).work == {"slow": pytest.approx(0.6), "risky": pytest.approx(6 / 9)}


def test_a_client_at_risk_takes_all_steps_whatever_time_that_needs():
    found = allotted(-0.4, 0.25)
    assert found.modes["risky"] == "qat"
    assert set(found.work) == {"slow"}
    assert round_seconds(COHORT, found) == 12.0
    assert round_seconds(COHORT, found, deadline=11.0) == 11.0
    assert allotted(0, 1).work == {}


def test_a_device_without_the_memory_never_trains_in_qat():
    assert "small" not in in_qat(10, 1)


def test_nobody_is_sent_past_the_deadline_by_risk_or_slack():
    assert in_qat(1, 1, least_work=1, deadline=12.5) == {"fast", "risky"}
    found = allotted(1, 1, deadline=8.0)
    assert found.seconds == 8.0
    assert found.work == {"slow": pytest.approx(8 / 13), "risky": pytest.approx(8 / 12)}


def test_where_no_round_waits_each_client_has_its_own_time():
    found = allotted(0, 0, waits=False)
    assert found.modes == {"slow": "qat", "risky": "qat", "fast": "qat", "small": "ptq"}
    assert found.work == {"slow": pytest.approx(10 / 13), "risky": pytest.approx(9 / 12), "fast": pytest.approx(2 / 4)}
    assert found.seconds == round_seconds(COHORT, found, waits=False) == (10 + 9 + 2 + 1) / 4
    assert in_qat(0, 0, least_work=0.6, waits=False) == {"slow", "risky"}
    assert in_qat(0, 0.25, least_work=1, waits=False) == {"risky"}
    assert in_qat(0.35, 0, least_work=1, waits=False) == {"slow", "risky"}


def test_a_round_lasts_as_long_as_its_slowest_client_in_its_faster_mode():
    odd = ClientFacts(ptq_seconds=30.0, qat_seconds=11.0, risk=0.0)
    assert least_round_seconds([*COHORT.values(), odd]) == 11.0
    assert least_round_seconds(COHORT.values(), deadline=5.0) == 5.0
    assert least_round_seconds([]) == 0.0


def test_a_client_that_is_faster_in_qat_trains_in_qat():
    odd = ClientFacts(ptq_seconds=30.0, qat_seconds=11.0, risk=0.0)
    assert allot(Boundary(0, 0), {"odd": odd}, math.inf, 1.0).modes == {"odd": "qat"}


@pytest.mark.parametrize(("share", "reached"), [(0, 0), (0.25, 1), (0.5, 2), (0.74, 3), (1, 4)])
def test_the_risk_level_is_reached_by_the_share_of_clients(share, reached):
    level = risk_level(RISKS, share)
    assert math.isfinite(level)
    assert sum(risk >= level for risk in RISKS) == reached


@pytest.mark.parametrize(("slack", "share"), [(-1, 0), (math.inf, 0), (math.nan, 0), (0, 1.1), (0, -1), ("1", 0)])
def test_numbers_out_of_range_are_refused(slack, share):
    with pytest.raises(ConfigurationError, match="boundary"):
        Boundary(slack, share)
