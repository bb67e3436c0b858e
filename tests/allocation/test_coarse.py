"""The boundary before round 1."""

import itertools
import random

import pytest

from fedhq_lightning.allocation.boundary import Boundary, ClientFacts, allot, risk_level, round_seconds
from fedhq_lightning.allocation.coarse import LATEST_START, choose_boundary, start_of_qat


def fleet(seed: int, count: int = 12) -> dict[int, ClientFacts]:
    generator = random.Random(seed)
    facts = {}
    for client_id in range(count):
        ptq = generator.choice([1.0, 3.0, 10.0]) * generator.uniform(0.8, 1.2)
        facts[client_id] = ClientFacts(
            ptq,
            ptq * generator.uniform(1.05, 2.6),
            generator.random(),
            fixed_seconds=0.1 * ptq,
            num_steps=generator.randint(3, 20),
        )
    return facts


def rounds_of(facts: dict[int, ClientFacts], seed: int) -> list[list[int]]:
    return [sorted(random.Random(f"{seed}/{number}").sample(list(facts), 5)) for number in range(8)]


def expected(boundary: Boundary, cohorts, facts, waits: bool = True) -> tuple[float, float, float]:
    """Mean length of a round, share of the risk in qat by steps taken, share of all steps taken."""
    level = risk_level([each.risk for each in facts.values()], boundary.share)
    seconds, inside, whole, steps, all_steps = 0.0, 0.0, 0.0, 0.0, 0.0
    for cohort in cohorts:
        own = {client_id: facts[client_id] for client_id in cohort}
        found = allot(boundary, own, level, 0.5, waits=waits)
        seconds += round_seconds(own, found, waits=waits)
        for client_id, mode in found.modes.items():
            work = found.work.get(client_id, 1.0)
            inside += own[client_id].risk * work * (mode == "qat")
            whole += own[client_id].risk
            steps += work * own[client_id].num_steps
            all_steps += own[client_id].num_steps
    return seconds / len(cohorts), inside / whole, steps / all_steps


def choose(cohorts, facts, budget: float, **how):
    return choose_boundary(cohorts, facts, [each.risk for each in facts.values()], budget, 0.5, **how)


def test_clients_that_take_no_time_are_slowed_down_by_nothing():
    choice = choose([["a"]], {"a": ClientFacts(0.0, 0.0, 1.0)}, 0.1)
    assert (choice.slowdown, choice.in_qat) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [0.0, 0.05, 0.2])
class TestChoice:
    @pytest.mark.parametrize("waits", [True, False])
    def test_what_it_promises_is_what_the_rounds_do(self, seed, budget, waits):
        facts = fleet(seed)
        cohorts = rounds_of(facts, seed)
        choice = choose(cohorts, facts, budget, waits=waits)
        free = expected(Boundary(0, 0), cohorts, facts, waits)
        seconds, protected, work = expected(choice.boundary, cohorts, facts, waits)
        assert choice.slowdown == pytest.approx(seconds / free[0] - 1, abs=1e-12)
        assert choice.slowdown <= budget + 1e-9
        assert choice.protected == pytest.approx(protected)
        assert choice.work == pytest.approx(work)
        assert choice.protected >= choice.protected_for_free == pytest.approx(free[1])

    def test_no_boundary_within_the_budget_protects_more(self, seed, budget):
        facts = fleet(seed)
        cohorts = rounds_of(facts, seed)
        choice = choose(cohorts, facts, budget)
        free = expected(Boundary(0, 0), cohorts, facts)
        for slack, share in itertools.product((0.0, 0.02, 0.1, 0.2), (0.0, 0.1, 0.3, 0.6, 1.0)):
            seconds, protected, _ = expected(Boundary(slack, share), cohorts, facts)
            if seconds <= free[0] * (1 + budget):
                # Slacks between are not looked at.
                assert protected <= choice.protected + 0.02


def test_without_a_budget_rounds_last_as_long_as_in_ptq():
    facts = fleet(1)
    choice = choose(rounds_of(facts, 1), facts, 0.0)
    assert choice.slowdown == 0.0
    assert choice.boundary.slack == 0.0


def test_a_given_boundary_is_judged_and_kept():
    facts = fleet(3)
    given = Boundary(0.07, 0.4)
    choice = choose(rounds_of(facts, 3), facts, 0.0, given=given)
    assert choice.boundary == given
    assert choice.slowdown >= 0


def test_the_deadline_bounds_every_round():
    facts = fleet(4)
    cohorts = rounds_of(facts, 4)
    choice = choose(cohorts, facts, 0.5, deadline=5.0)
    assert choice.bottleneck <= 5.0


def test_no_risk_at_all_is_no_division_by_zero():
    facts = {0: ClientFacts(1.0, 2.0, 0.0), 1: ClientFacts(3.0, 4.0, 0.0)}
    assert choose([[0, 1]], facts, 0.1).protected == 0.0


@pytest.mark.parametrize(
    ("noise", "start"), [(0.0, 0.0), (0.006, 0.06), (3.0, LATEST_START), (-1.0, 0.0), (None, 0.25)]
)
def test_qat_begins_the_later_the_more_rounding_destroys(noise, start):
    assert start_of_qat(noise) == start


def test_a_cohort_of_a_thousand_is_chosen_for_in_a_second():
    facts = fleet(5, count=1000)
    cohorts = [list(facts)] * 50
    choice = choose(cohorts, facts, 0.1)
    assert choice.protected > 0
