"""What every allocator keeps to, whatever it decides by."""

import copy
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.risk.sensitivity import SensitivityMeasure
from fedhq_lightning.run.records import LEFT_OUT
from fedhq_lightning.testing.allocator_rounds import AllocatorRounds, same_plans
from fedhq_lightning.testing.host_state import generator_states, leaping_clocks, seeded
from fedhq_lightning.testing.made_rounds import made_record
from fedhq_lightning.testing.same_values import not_plain, same_values, through_checkpoint, through_json
from fedhq_lightning.types import MODES, Plan


class AllocatorContract(AllocatorRounds):
    """Inherit, give `make`, and pytest runs the contract: `class TestMine(AllocatorContract): make = Mine`."""

    def test_a_plan_names_the_cohort_and_nobody_else(self) -> None:
        """A plan names every client of the cohort and no other, whatever the cohort's size."""
        allocator = self.begun()
        for number, size in enumerate((1, len(self.client_ids) // 2, len(self.client_ids)), start=1):
            cohort = random.Random(number).sample(list(self.client_ids), size)
            assert set(allocator.propose(number, cohort).modes) == set(cohort)

    def test_a_plan_gives_modes_that_exist(self) -> None:
        """Every mode of a plan is one of `MODES`."""
        allocator = self.begun()
        for number in range(1, self.max_rounds + 1):
            plan = allocator.propose(number, self.cohort(number))
            assert set(plan.modes.values()) <= set(MODES)
            allocator.observe(made_record(number, plan, self.context()))

    def test_a_plan_logs_text_and_numbers(self) -> None:
        """A plan's reason is text, and what it logs is numbers by name."""
        for plan in self.play(self.begun(), range(1, self.max_rounds + 1)):
            assert isinstance(plan.reason, str)
            assert all(isinstance(name, str) and isinstance(value, int | float) for name, value in plan.logged.items())

    def test_an_empty_cohort_has_an_empty_plan(self) -> None:
        """A cohort of nobody has a plan for nobody."""
        assert dict(self.begun().propose(1, []).modes) == {}

    def test_cohorts_known_beforehand_are_planned(self) -> None:
        """Where the context tells the cohorts, a plan covers them all the same."""
        allocator = self.begun(cohort=lambda round_number: list(self.client_ids))
        for number in (1, 2):
            assert set(allocator.propose(number, list(self.client_ids)).modes) == set(self.client_ids)

    def test_two_of_a_kind_plan_alike(self) -> None:
        """Two allocators with the same settings propose the same for the same run."""
        rounds = range(1, self.max_rounds + 1)
        assert same_plans(self.play(self.begun(), rounds), self.play(self.begun(), rounds))

    def test_the_order_of_the_cohort_decides_nothing(self) -> None:
        """The order in which the cohort's clients are named decides nothing."""
        cohort = self.cohort(1)
        forward, backward = self.begun().propose(1, cohort), self.begun().propose(1, cohort[::-1])
        assert dict(forward.modes) == dict(backward.modes)

    def test_the_cohort_given_is_left_alone(self) -> None:
        """`propose` changes nothing in the list that it is given."""
        cohort = self.cohort(1)
        self.begun().propose(1, cohort)
        assert cohort == self.cohort(1)

    def test_a_plan_stays_as_it_was(self) -> None:
        """Later rounds change nothing in an earlier plan."""
        allocator = self.begun()
        plan = allocator.propose(1, self.cohort(1))
        kept = copy.deepcopy(plan)
        allocator.observe(made_record(1, plan, self.context()))
        self.play(allocator, range(2, self.max_rounds + 1))
        assert same_plans([plan], [kept])

    def test_global_random_numbers_decide_nothing(self) -> None:
        """The global random numbers of Python, NumPy and torch decide nothing and are left as they were."""
        rounds, plans = range(1, self.max_rounds + 1), []
        for seed in (1, 2):
            with seeded(seed):
                before = generator_states()
                plans.append(self.play(self.begun(), rounds))
                assert same_values(generator_states(), before), "global random numbers were drawn"
        assert same_plans(*plans)

    def test_the_hosts_clock_decides_nothing(self) -> None:
        """The clocks of this host decide nothing, for a resumed run has another time."""
        rounds = range(1, self.max_rounds + 1)
        plans = self.play(self.begun(), rounds)
        with leaping_clocks(self.make()):
            assert same_plans(self.play(self.begun(), rounds), plans)

    def test_state_is_plain(self) -> None:
        """`state_dict` holds plain values under names, before the first round and after the last."""
        allocator = self.begun()
        assert not_plain(allocator.state_dict()) is None
        self.play(allocator, range(1, self.max_rounds + 1))
        assert not_plain(allocator.state_dict()) is None

    def test_state_is_a_snapshot(self) -> None:
        """Asking for the state changes nothing, and later rounds change nothing in a state handed out."""
        allocator, half = self.begun(), self.max_rounds // 2
        self.play(allocator, range(1, half + 1))
        state = allocator.state_dict()
        kept = copy.deepcopy(state)
        assert same_values(allocator.state_dict(), kept)
        self.play(allocator, range(half + 1, self.max_rounds + 1))
        assert same_values(state, kept)

    def test_goes_on_from_json(self) -> None:
        """After a resume from JSON, at whatever round, plans and state are those of the unbroken run."""
        self._resume(through_json)

    def test_goes_on_from_a_checkpoint(self) -> None:
        """After a resume from a torch checkpoint, at whatever round, plans and state are those of the unbroken run."""
        self._resume(through_checkpoint)

    def test_begin_starts_afresh(self) -> None:
        """A second `begin` forgets the first run."""
        rounds, allocator = range(1, self.max_rounds + 1), self.begun()
        first = self.play(allocator, rounds)
        allocator.begin(self.context())
        assert same_plans(self.play(allocator, rounds), first)

    def test_another_allocators_state_is_refused(self) -> None:
        """`load_state_dict` refuses what another allocator kept, with a ConfigurationError."""
        with pytest.raises(ConfigurationError):
            self.begun().load_state_dict({"kept by another allocator": 1})

    def test_nothing_unplanned_before_begin(self) -> None:
        """Before `begin`, `propose` raises RuntimeError, unless the plan needs nothing of the run."""
        try:
            plan = self.make().propose(1, self.cohort(1))
        except RuntimeError:
            return
        assert set(plan.modes) == set(self.cohort(1))

    def test_observes_rounds_without_metrics(self) -> None:
        """A round that was not evaluated is observed, and so is one whose metrics are no numbers."""
        for value in (None, float("nan"), float("-inf")):
            metrics = {} if value is None else {"fp/val_accuracy": value, "quantized/val_accuracy": value}
            self._observe(metrics=metrics, metric_fp=value, metric_quantized=value)

    def test_observes_the_evaluation_before_round_1(self) -> None:
        """Round 0 is observed, which has a metric and no clients; every round is planned as ever."""
        allocator = self.begun()
        allocator.observe(made_record(0, Plan({}), self.context()))
        for number, plan in enumerate(self.play(allocator, range(1, self.max_rounds + 1)), start=1):
            assert set(plan.modes) == set(self.cohort(number))

    def test_observes_rounds_that_lost_clients(self) -> None:
        """A round is observed whose clients were late, idle, quarantined, measured nothing, or were none."""
        self._observe(clients=(), mode_counts=dict.fromkeys(MODES, 0), virtual_seconds=0.0)
        plan = self.begun().propose(1, self.cohort(1))
        clients = made_record(1, plan, self.context()).clients
        nothing: Mapping[str, Any] = {"sensitivity": None, "update_divergence": None, "metrics": {}}
        for status in LEFT_OUT:
            self._observe(clients=tuple(replace(each, status=status, **nothing) for each in clients))

    def test_what_it_wants_exists(self) -> None:
        """What an allocator wants measured can be measured."""
        allocator = self.begun()
        assert allocator.wanted_sensitivity in (None, *get_args(SensitivityMeasure))
        assert allocator.wants_label_divergence in (True, False)
        assert allocator.wants_update_divergence in (True, False)

    def test_writing_decides_nothing(self, tmp_path: Path) -> None:
        """`write` may leave files in the folder that it is given, and decides nothing."""
        rounds, writer = range(1, self.max_rounds + 1), self.begun()
        plans = self.play(writer, rounds, after=lambda: writer.write(tmp_path))
        assert same_plans(plans, self.play(self.begun(), rounds))

    def _resume(self, trip: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        for done in sorted({0, 1, self.max_rounds // 2, self.max_rounds - 1}):
            unbroken = self.begun()
            self.play(unbroken, range(1, done + 1))
            resumed = self.begun(resumes=True)
            resumed.load_state_dict(trip(unbroken.state_dict()))
            rest = range(done + 1, self.max_rounds + 1)
            assert same_plans(self.play(resumed, rest), self.play(unbroken, rest)), f"resumed after round {done}"
            assert json.dumps(resumed.state_dict()) == json.dumps(unbroken.state_dict())

    def _observe(self, **changes: Any) -> None:
        """A round of another kind than the others, between them."""
        allocator = self.begun()
        self.play(allocator, [1])
        plan = allocator.propose(2, self.cohort(2))
        allocator.observe(made_record(2, plan, self.context(), **changes))
        for number, later in enumerate(self.play(allocator, range(3, self.max_rounds + 1)), start=3):
            assert set(later.modes) == set(self.cohort(number))
