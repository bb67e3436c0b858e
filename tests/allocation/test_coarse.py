"""The boundary before round 1."""

import itertools
import random

import pytest

from fedhq_lightning.allocation.boundary import Boundary, ClientFacts, allot, risk_level
from fedhq_lightning.allocation.coarse import LATEST_START, choose_boundary, start_of_qat


def fleet(seed: int, count: int = 12) -> dict[int, ClientFacts]:
    generator = random.Random(seed)
    facts = {}
    for client_id in range(count):
        ptq = generator.choice([1.0, 3.0, 10.0]) * generator.uniform(0.8, 1.2)
        facts[client_id] = ClientFacts(ptq, ptq * generator.uniform(1.05, 1.6), generator.random())
    return facts


def rounds_of(facts: dict[int, ClientFacts], seed: int) -> list[list[int]]:
    return [sorted(random.Random(f"{seed}/{number}").sample(list(facts), 5)) for number in range(8)]


def lengths(boundary: Boundary, cohorts, facts) -> float:
    level = risk_level([each.risk for each in facts.values()], boundary.share)
    total = 0.0
    for cohort in cohorts:
        modes, _ = allot(boundary, {client_id: facts[client_id] for client_id in cohort}, level)
        total += max(facts[c].qat_seconds if mode == "qat" else facts[c].ptq_seconds for c, mode in modes.items())
    return total / len(cohorts)


def protected(boundary: Boundary, cohorts, facts) -> float:
    level = risk_level([each.risk for each in facts.values()], boundary.share)
    inside = whole = 0.0
    for cohort in cohorts:
        modes, _ = allot(boundary, {client_id: facts[client_id] for client_id in cohort}, level)
        inside += sum(facts[c].risk for c, mode in modes.items() if mode == "qat")
        whole += sum(facts[c].risk for c in cohort)
    return inside / whole


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [0.0, 0.05, 0.2])
class TestChoice:
    def test_what_it_promises_is_what_the_rounds_do(self, seed, budget):
        facts = fleet(seed)
        cohorts = rounds_of(facts, seed)
        choice = choose_boundary(cohorts, facts, [each.risk for each in facts.values()], budget)
        free = lengths(Boundary(0, 0), cohorts, facts)
        assert choice.slowdown == pytest.approx(lengths(choice.boundary, cohorts, facts) / free - 1, abs=1e-12)
        assert choice.slowdown <= budget + 1e-9
        assert choice.protected == pytest.approx(protected(choice.boundary, cohorts, facts))
        assert choice.protected >= choice.protected_for_free

    def test_no_boundary_within_the_budget_protects_more(self, seed, budget):
        facts = fleet(seed)
        cohorts = rounds_of(facts, seed)
        choice = choose_boundary(cohorts, facts, [each.risk for each in facts.values()], budget)
        free = lengths(Boundary(0, 0), cohorts, facts)
        for slack, share in itertools.product((0.0, 0.02, 0.1, 0.3, choice.greatest_slack), (0.0, 0.1, 0.3, 0.6, 1.0)):
            other = Boundary(slack, share)
            if lengths(other, cohorts, facts) <= free * (1 + budget):
                # 20 slacks are tried of the 60 or so that differ.
                assert protected(other, cohorts, facts) <= choice.protected + 0.1


def test_nothing_is_paid_where_rounding_destroys_nothing():
    facts = fleet(1)
    choice = choose_boundary(rounds_of(facts, 1), facts, [each.risk for each in facts.values()], 0.0)
    assert choice.slowdown == 0.0


def test_the_greatest_slack_is_all_qat():
    facts = fleet(2)
    cohorts = rounds_of(facts, 2)
    slack = choose_boundary(cohorts, facts, [0.0], 0.1).greatest_slack
    for cohort in cohorts:
        modes, _ = allot(Boundary(slack, 0), {client_id: facts[client_id] for client_id in cohort}, 99.0)
        assert set(modes.values()) == {"qat"}


def test_a_given_boundary_is_judged_and_kept():
    facts = fleet(3)
    given = Boundary(0.07, 0.4)
    choice = choose_boundary(rounds_of(facts, 3), facts, [0.5], 0.0, given=given)
    assert choice.boundary == given
    assert choice.slowdown >= 0


def test_the_deadline_bounds_every_round():
    facts = fleet(4)
    cohorts = rounds_of(facts, 4)
    choice = choose_boundary(cohorts, facts, [each.risk for each in facts.values()], 0.5, deadline=5.0)
    assert choice.bottleneck <= 5.0


def test_no_risk_at_all_is_no_division_by_zero():
    facts = {0: ClientFacts(1.0, 2.0, 0.0), 1: ClientFacts(3.0, 4.0, 0.0)}
    assert choose_boundary([[0, 1]], facts, [0.0, 0.0], 0.1).protected == 0.0


@pytest.mark.parametrize(("noise", "start"), [(0.0, 0.0), (0.006, 0.06), (3.0, LATEST_START), (-1.0, 0.0), (None, 0.0)])
def test_qat_begins_the_later_the_more_rounding_destroys(noise, start):
    assert start_of_qat(noise) == start


def test_a_cohort_of_a_thousand_is_chosen_for_in_a_second():
    facts = fleet(5, count=1000)
    cohorts = [list(facts)] * 50
    choice = choose_boundary(cohorts, facts, [each.risk for each in facts.values()], 0.1)
    assert choice.protected > 0
