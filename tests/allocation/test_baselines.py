"""Free QAT, and random allocations matched to another run."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fedhq_lightning.allocation import AllocationContext, FreeQatAllocator, MatchedRandomAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import Mode

from .references import write_reference

SECONDS = {"a": (1.0, 2.0), "b": (2.0, 5.0), "c": (5.0, 9.0), "d": (3.0, 5.0)}  # ptq, qat


def context(**changes) -> AllocationContext:
    made = AllocationContext(
        client_ids=list(SECONDS), seed=3, client_seconds=lambda client_id, mode: SECONDS[client_id][mode == "qat"]
    )
    return replace(made, **changes)


class TestFreeQat:
    def plan(self, cohort: str, **changes) -> dict[str, Mode]:
        allocator = FreeQatAllocator()
        allocator.begin(context(**changes))
        return dict(allocator.propose(1, list(cohort)).modes)

    def test_qat_up_to_the_slowest_ptq_of_the_cohort(self):
        # The slowest ptq takes 5 seconds: as long is still free.
        assert self.plan("abcd") == {"a": "qat", "b": "qat", "c": "ptq", "d": "qat"}
        assert self.plan("abd") == {"a": "qat", "b": "ptq", "d": "ptq"}
        assert self.plan("a") == {"a": "ptq"}

    def test_what_does_not_fit_is_never_given_qat(self):
        fits = lambda client_id, mode: (client_id, mode) != ("a", "qat")  # noqa: E731
        assert self.plan("abcd", fits=fits) == {"a": "ptq", "b": "qat", "c": "ptq", "d": "qat"}

    def test_a_deadline_ends_the_wait(self):
        assert self.plan("abcd", round_deadline=2.5) == {"a": "qat", "b": "ptq", "c": "ptq", "d": "ptq"}

    def test_the_bottleneck_is_logged(self):
        allocator = FreeQatAllocator()
        allocator.begin(context())
        assert allocator.propose(1, ["b", "d"]).logged == {"seconds": 3.0}


CLIENTS = list(range(40))
TIER = {client_id: "fast" if client_id < 10 else "slow" for client_id in CLIENTS}


def cohort(round_number: int) -> list[int]:
    return [client_id for client_id in CLIENTS if client_id % 4 == round_number % 4 or client_id < 8]


def run_of(counts: list[tuple[int, int]]) -> list[dict[int, Mode]]:
    """Rounds in which so many of the fast and of the slow tier train in qat: the first ones."""
    rounds = []
    for number, (fast, slow) in enumerate(counts, start=1):
        left = {"fast": fast, "slow": slow}
        modes: dict[int, Mode] = {}
        for client_id in cohort(number):
            tier = TIER[client_id]
            modes[client_id] = "qat" if left[tier] > 0 else "ptq"
            left[tier] -= 1
        rounds.append(modes)
    return rounds


COUNTS = [(2, 1), (0, 5), (8, 0), (3, 3)]


class TestMatchedRandom:
    @pytest.fixture
    def reference(self, tmp_path: Path) -> str:
        return write_reference(tmp_path / "run", run_of(COUNTS), TIER.__getitem__)

    def context(self, **changes) -> AllocationContext:
        made = AllocationContext(CLIENTS, 1, lambda client_id, mode: 1.0, cohort=cohort, max_rounds=len(COUNTS))
        return replace(made, **changes)

    def plans(self, reference: str, per: str, **changes) -> list[dict[int, Mode]]:
        allocator = MatchedRandomAllocator(reference, per=per)
        allocator.begin(self.context(**changes))
        return [dict(allocator.propose(number, cohort(number)).modes) for number in range(1, len(COUNTS) + 1)]

    def counted(self, plans: list[dict[int, Mode]]) -> list[tuple[int, int]]:
        found = [Counter(TIER[client_id] for client_id, mode in plan.items() if mode == "qat") for plan in plans]
        return [(count["fast"], count["slow"]) for count in found]

    def test_as_many_over_the_run_spread_over_all_rounds(self, reference):
        plans = self.plans(reference, "total")
        counts = self.counted(plans)
        assert sum(map(sum, counts)) == sum(map(sum, COUNTS)) == 22
        assert counts != COUNTS
        assert all(sum(count) > 0 for count in counts)

    def test_as_many_in_every_round_and_tier(self, reference):
        plans = self.plans(reference, "tier")
        assert self.counted(plans) == COUNTS
        assert plans != run_of(COUNTS)

    @pytest.mark.parametrize("per", ["total", "tier"])
    def test_the_seed_decides(self, reference, per):
        assert self.plans(reference, per) == self.plans(reference, per)
        assert self.plans(reference, per) != self.plans(reference, per, seed=2)

    def test_every_fit_is_as_likely(self, reference):
        drawn = Counter()
        for seed in range(60):
            for number, plan in enumerate(self.plans(reference, "total", seed=seed), start=1):
                drawn.update((number, client_id) for client_id, mode in plan.items() if mode == "qat")
        fits = sum(len(cohort(number)) for number in range(1, 5))
        assert len(drawn) == fits
        # 60 draws of 22 out of 64 fits: 20.6 each, standard deviation 3.7.
        assert max(drawn.values()) < 20.6 + 4 * 3.7
        assert min(drawn.values()) > 20.6 - 4 * 3.7

    def test_devices_that_cannot_hold_qat_are_left_out(self, reference):
        plans = self.plans(reference, "total", fits=lambda client_id, mode: client_id < 20)
        assert all(mode == "ptq" for plan in plans for client_id, mode in plan.items() if client_id >= 20)
        assert sum(map(sum, self.counted(plans))) == 22

    def test_a_kept_cell_serves_as_well(self, reference, tmp_path):
        clients = [[[each, int(TIER[each] == "slow"), mode] for each, mode in plan.items()] for plan in run_of(COUNTS)]
        cell = tmp_path / "hybrid-seed-1.json"
        cell.write_text(json.dumps({"tiers": ["fast", "slow"], "clients": clients}))
        assert self.plans(str(cell), "tier") == self.plans(reference, "tier")

    def test_ids_may_have_become_text(self, reference):
        allocator = MatchedRandomAllocator(reference)
        allocator.begin(self.context(cohort=lambda number: [str(each) for each in cohort(number)]))
        assert allocator.propose(1, [str(each) for each in cohort(1)]).counts()["qat"] > 0

    def test_an_unfinished_last_line_is_left_out(self, tmp_path):
        reference = write_reference(tmp_path / "run", run_of(COUNTS), TIER.__getitem__, end="")
        with pytest.raises(ConfigurationError, match="has no round 4, only 3 rounds; give a run that was as long"):
            self.plans(reference, "total")

    def test_a_shorter_reference_is_refused_before_round_1(self, reference):
        with pytest.raises(ConfigurationError, match="has no round 5, only 4 rounds"):
            MatchedRandomAllocator(reference).begin(self.context(max_rounds=5))

    def test_other_cohorts_are_refused_before_round_1(self, reference):
        other = lambda number: [1000, *cohort(number)]  # noqa: E731
        with pytest.raises(ConfigurationError, match="other clients in round 1: nobody else there, 1000 here"):
            MatchedRandomAllocator(reference).begin(self.context(cohort=other))
        with pytest.raises(ConfigurationError, match="other clients in round 1"):
            MatchedRandomAllocator(reference).begin(self.context(cohort=lambda number: cohort(number)[1:]))

    def test_other_cohorts_are_refused_where_only_the_run_tells(self, reference):
        allocator = MatchedRandomAllocator(reference)
        allocator.begin(self.context(cohort=None))
        with pytest.raises(ConfigurationError, match="1000 here; give a run of the same clients"):
            allocator.propose(1, [1000])
        with pytest.raises(ConfigurationError, match="has no round 9"):
            allocator.propose(9, cohort(9))

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "no such file"), ("{", "is damaged"), ('{"clients": 3}', "is damaged"), ("{}", "no client's mode")],
    )
    def test_a_bad_reference_is_refused(self, tmp_path, content, message):
        cell = tmp_path / "cell.json"
        if content is not None:
            cell.write_text(content)
        with pytest.raises(ConfigurationError, match=message):
            MatchedRandomAllocator(str(cell)).begin(self.context())

    def test_an_unknown_choice_is_refused(self):
        with pytest.raises(ConfigurationError, match="per='tiers'; allowed are total, tier; did you mean 'tier'"):
            MatchedRandomAllocator("run", per="tiers")
