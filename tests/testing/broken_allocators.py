"""An allocator that keeps to the contract, and for each of its sentences one that does not."""

import random
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch

from fedhq_lightning.allocation import AllocationContext, Allocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import ClientId, Plan


class Sound(Allocator):
    """Its plans depend on what it has observed, the rounds and the qat fits before."""

    def begin(self, context: AllocationContext) -> None:
        self.context, self.seen = context, [0, 0]

    def propose(self, round_number: int, cohort: Sequence[ClientId]) -> Plan:
        if not hasattr(self, "context"):
            raise RuntimeError("propose before begin")
        count = min(len(cohort), sum(self.seen) % 11)
        ordered = sorted(cohort, key=str)
        modes = dict.fromkeys(ordered[:count], "qat") | dict.fromkeys(ordered[count:], "ptq")
        return Plan(modes, f"{count} in qat", {"count": count})

    def observe(self, result: Any) -> None:
        self.seen = [self.seen[0] + 1, self.seen[1] + result.mode_counts["qat"]]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != {"seen"}:
            raise ConfigurationError("another allocator's state")
        self.seen = list(state["seen"])


class LeavesOneOut(Sound):
    def propose(self, round_number, cohort):
        return super().propose(round_number, cohort[1:])


class InventsAMode(Sound):
    def propose(self, round_number, cohort):
        return Plan(dict.fromkeys(cohort, "int8"))


class LogsText(Sound):
    def propose(self, round_number, cohort):
        return Plan(dict.fromkeys(cohort, "qat"), logged={"who": "everybody"})


class PlansForEverybody(Sound):
    def propose(self, round_number, cohort):
        return Plan(dict.fromkeys(self.context.client_ids, "qat"))


class PlansHalfOfKnownCohorts(Sound):
    def propose(self, round_number, cohort):
        known = self.context.cohort
        return super().propose(round_number, cohort if known is None else known(round_number)[::2])


class CountsItsKind(Sound):
    made = 0

    def begin(self, context):
        super().begin(context)
        CountsItsKind.made += 1
        self.seen[0] = CountsItsKind.made


class TakesTheFirst(Sound):
    def propose(self, round_number, cohort):
        return Plan(dict.fromkeys(cohort, "ptq") | {client_id: "qat" for client_id in cohort[:1]})


class SortsInPlace(Sound):
    def propose(self, round_number, cohort):
        cohort.sort(key=str)
        return super().propose(round_number, cohort)


class KeepsOnePlan(Sound):
    def begin(self, context):
        super().begin(context)
        self.modes = {}

    def propose(self, round_number, cohort):
        self.modes.clear()
        self.modes.update(super().propose(round_number, cohort).modes)
        return Plan(self.modes)


class DrawsGlobally(Sound):
    def propose(self, round_number, cohort):
        return Plan({client_id: random.choice(["ptq", "qat"]) for client_id in cohort})


class LooksAtTheClock(Sound):
    def begin(self, context):
        super().begin(context)
        self.start = perf_counter()

    def propose(self, round_number, cohort):
        return Plan(dict.fromkeys(cohort, "qat" if perf_counter() - self.start < 600 else "ptq"))


class KeepsATensor(Sound):
    def state_dict(self):
        return {"seen": torch.tensor(self.seen)}


class HandsOutItsState(Sound):
    def observe(self, result):
        self.seen[0] += 1

    def state_dict(self):
        return {"seen": self.seen}


class KeysByNumber(Sound):
    """JSON makes text of the keys."""

    def begin(self, context):
        super().begin(context)
        self.rounds = {}

    def observe(self, result):
        super().observe(result)
        self.rounds[result.round] = True

    def propose(self, round_number, cohort):
        return Plan(dict.fromkeys(cohort, "qat" if self.rounds.get(1) else "ptq"))

    def state_dict(self):
        return {"seen": self.seen, "rounds": dict(self.rounds)}

    def load_state_dict(self, state):
        self.seen, self.rounds = list(state["seen"]), dict(state["rounds"])


class Forgets(Sound):
    def load_state_dict(self, state):
        self.seen = [0, 0]


class GoesOnAfterBegin(Sound):
    def begin(self, context):
        seen = getattr(self, "seen", [0, 0])
        super().begin(context)
        self.seen = seen


class TakesAnyState(Sound):
    def load_state_dict(self, state):
        self.seen = state.get("seen", [0, 0])


class StumblesBeforeBegin(Sound):
    def propose(self, round_number, cohort):
        return Plan(dict.fromkeys(cohort, "qat" if self.context.max_rounds > 5 else "ptq"))


class NeedsAMetric(Sound):
    def observe(self, result):
        super().observe(result)
        self.best = max(0.0, result.monitored)


class DividesByTheRound(Sound):
    def observe(self, result):
        super().observe(result)
        self.rate = result.total_virtual_seconds / result.round


class NeedsSensitivities(Sound):
    def observe(self, result):
        super().observe(result)
        self.worst = max(each.sensitivity for each in result.clients)


class WantsTheImpossible(Sound):
    wanted_sensitivity = "gut feeling"


class DecidesWhenWriting(Sound):
    def write(self, folder):
        self.seen[0] += 1


# The contract's test to who breaks it, and what the test then ends with.
BROKEN: dict[str, tuple[type[Allocator], type[BaseException]]] = {
    "test_a_plan_names_the_cohort_and_nobody_else": (LeavesOneOut, AssertionError),
    "test_a_plan_gives_modes_that_exist": (InventsAMode, AssertionError),
    "test_a_plan_logs_text_and_numbers": (LogsText, AssertionError),
    "test_an_empty_cohort_has_an_empty_plan": (PlansForEverybody, AssertionError),
    "test_cohorts_known_beforehand_are_planned": (PlansHalfOfKnownCohorts, AssertionError),
    "test_two_of_a_kind_plan_alike": (CountsItsKind, AssertionError),
    "test_the_order_of_the_cohort_decides_nothing": (TakesTheFirst, AssertionError),
    "test_the_cohort_given_is_left_alone": (SortsInPlace, AssertionError),
    "test_a_plan_stays_as_it_was": (KeepsOnePlan, AssertionError),
    "test_global_random_numbers_decide_nothing": (DrawsGlobally, AssertionError),
    "test_the_hosts_clock_decides_nothing": (LooksAtTheClock, AssertionError),
    "test_state_is_plain": (KeepsATensor, AssertionError),
    "test_state_is_a_snapshot": (HandsOutItsState, AssertionError),
    "test_goes_on_from_json": (KeysByNumber, AssertionError),
    "test_goes_on_from_a_checkpoint": (Forgets, AssertionError),
    "test_begin_starts_afresh": (GoesOnAfterBegin, AssertionError),
    "test_nothing_unplanned_before_begin": (StumblesBeforeBegin, AttributeError),
    "test_observes_rounds_without_metrics": (NeedsAMetric, TypeError),
    "test_observes_the_evaluation_before_round_1": (DividesByTheRound, ZeroDivisionError),
    "test_observes_rounds_that_lost_clients": (NeedsSensitivities, ValueError),
    "test_what_it_wants_exists": (WantsTheImpossible, AssertionError),
    "test_writing_decides_nothing": (DecidesWhenWriting, AssertionError),
}
