"""Who is on which side of the boundary."""

import math

import pytest

from fedhq_lightning.allocation.boundary import (
    Boundary,
    ClientFacts,
    allot,
    bottleneck_seconds,
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


def in_qat(slack: float, share: float, deadline: float | None = None) -> set[object]:
    modes, _ = allot(Boundary(slack, share), COHORT, risk_level(RISKS, share), deadline)
    assert set(modes.values()) <= {"ptq", "qat"}
    return {client_id for client_id, mode in modes.items() if mode == "qat"}


def test_without_slack_and_share_qat_goes_to_whom_it_costs_no_round_time():
    assert in_qat(0, 0) == {"fast"}


def test_slack_lets_in_whoever_is_done_in_the_longer_round():
    assert in_qat(0.2, 0) == {"fast", "risky"}
    assert in_qat(0.3, 0) == {"fast", "risky", "slow"}


def test_slack_below_0_lets_in_whoever_is_done_earlier():
    assert in_qat(-0.5, 0) == {"fast"}
    assert in_qat(-0.7, 0) == in_qat(-1, 0) == set()
    assert in_qat(-1, 0.25) == {"risky"}


def test_a_round_lasts_as_long_as_its_slowest_client_in_its_mode():
    modes, _ = allot(Boundary(0, 0.25), COHORT, risk_level(RISKS, 0.25))
    assert round_seconds(COHORT, modes) == 12.0
    assert round_seconds(COHORT, modes, deadline=11.0) == 11.0


def test_a_client_at_risk_trains_in_qat_whatever_time_it_takes():
    assert in_qat(0, 0.25) == {"fast", "risky"}
    assert in_qat(0, 1) == {"fast", "risky", "slow"}


def test_a_device_without_the_memory_never_trains_in_qat():
    assert "small" not in in_qat(10, 1)


def test_nobody_is_sent_past_the_deadline_by_risk_or_slack():
    assert in_qat(1, 1, deadline=12.5) == {"fast", "risky"}
    assert in_qat(1, 1, deadline=3.0) == set()


def test_a_round_lasts_as_long_as_its_slowest_client_in_its_faster_mode():
    odd = ClientFacts(ptq_seconds=30.0, qat_seconds=11.0, risk=0.0)
    assert bottleneck_seconds([*COHORT.values(), odd]) == 11.0
    assert bottleneck_seconds(COHORT.values(), deadline=5.0) == 5.0
    assert bottleneck_seconds([]) == 0.0


def test_a_client_that_is_faster_in_qat_trains_in_qat():
    odd = ClientFacts(ptq_seconds=30.0, qat_seconds=11.0, risk=0.0)
    assert allot(Boundary(0, 0), {"odd": odd}, math.inf)[0] == {"odd": "qat"}


@pytest.mark.parametrize(("share", "reached"), [(0, 0), (0.25, 1), (0.5, 2), (0.74, 3), (1, 4)])
def test_the_risk_level_is_reached_by_the_share_of_clients(share, reached):
    level = risk_level(RISKS, share)
    assert math.isfinite(level)
    assert sum(risk >= level for risk in RISKS) == reached


@pytest.mark.parametrize(("slack", "share"), [(-1.1, 0), (math.inf, 0), (math.nan, 0), (0, 1.1), (0, -1), ("1", 0)])
def test_numbers_out_of_range_are_refused(slack, share):
    with pytest.raises(ConfigurationError, match="boundary"):
        Boundary(slack, share)
