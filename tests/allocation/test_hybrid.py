"""The hybrid allocator, from analyses to plans and back from what was logged."""

import json
from dataclasses import replace
from itertools import groupby

import pytest

from fedhq_lightning.allocation import HybridAllocator
from fedhq_lightning.allocation.boundary import Boundary
from fedhq_lightning.allocation.warm_start import learned_before, learned_by
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.logged_rows import make_history
from fedhq_lightning.types import Plan

from .played import CLIENTS, SECONDS, SLOWER, cohort, context, play, ready, record, tier


def test_both_modes_are_planned_and_the_boundary_is_logged():
    plan = ready(least_work=0.9).propose(1, CLIENTS)
    assert 0 < plan.counts()["qat"] < len(CLIENTS)
    assert set(plan.logged) == {"slack", "share", "seconds", "risk", "work", "trial", "incumbent"}


def test_the_explanation_names_both_analyses_and_the_boundary():
    text = ready().explanation
    for words in ("4 board with 10 in PTQ and 13 in QAT", "total variation", "T ="):
        assert words in text
    assert "rho =" in ready(boundary={"slack": 0, "share": 0.3}).explanation
    assert "rho =" not in ready(boundary={"slack": 0, "share": 0}).explanation


def test_longer_rounds_pay_for_more_steps_in_qat():
    def work(slowdown: float) -> float:
        return sum(plan.logged["work"] for plan in play(ready(fine=False, slowdown=slowdown), range(1, 10)))

    assert work(0.0) < work(0.2) <= work(0.5)


def test_least_work_1_asks_everybody_for_all_steps():
    plans = play(ready(least_work=1, slowdown=0.0), range(1, 31), metric=0.5)
    assert all(not plan.work for plan in plans)
    assert {mode for plan in plans for mode in plan.modes.values()} == {"ptq", "qat"}


def test_slow_clients_take_fewer_steps_within_the_time_of_ptq():
    plan = ready(fine=False, slowdown=0.0).propose(1, CLIENTS)
    assert set(plan.modes.values()) == {"qat"}
    assert plan.work == {each: pytest.approx(10 / 13) for each in CLIENTS if tier(each) == "board"}


def test_where_no_round_waits_clients_take_their_own_time_in_ptq():
    allocator = ready({"rounds_wait": False, "cohort": None}, fine=False, slowdown=0.0)
    plan = allocator.propose(1, CLIENTS)
    assert set(plan.modes.values()) == {"qat"}
    assert plan.work == {each: pytest.approx(10 / 13 if tier(each) == "board" else 3 / 5) for each in CLIENTS}
    assert "No round waits, so each client has a T of its own, as long as it takes in its faster mode" in (
        allocator.explanation
    )
    choosy = ready({"rounds_wait": False, "cohort": None}, fine=False, slowdown=0.0, least_work=0.7)
    modes = choosy.propose(1, CLIENTS).modes
    assert {tier(each): mode for each, mode in modes.items()} == {"board": "qat", "phone": "ptq"}


def test_where_no_round_waits_a_window_has_time_for_its_own_updates():
    def rounds_of_the_first_challenger(rounds_to_arrive: int) -> int:
        changes = {"rounds_wait": False, "cohort": None, "rounds_to_arrive": rounds_to_arrive}
        plans = play(ready(changes, slowdown=0.0), range(1, 31), metric=0.5)
        trials = [list(group) for _, group in groupby(plan.logged["trial"] for plan in plans)]
        return len(trials[1])

    assert rounds_of_the_first_challenger(2) == 2
    assert rounds_of_the_first_challenger(4) == 6


def test_a_device_without_the_memory_is_never_given_qat():
    allocator = ready({"fits": lambda client_id, mode: tier(client_id) == "phone"}, boundary={"slack": 9, "share": 1})
    assert {client_id for client_id, mode in allocator.propose(1, CLIENTS).modes.items() if mode == "qat"} == {
        client_id for client_id in CLIENTS if tier(client_id) == "phone"
    }


def test_without_refinement_the_boundary_stays():
    plans = play(ready(fine=False), range(1, 25))
    assert len({(plan.logged["slack"], plan.logged["share"]) for plan in plans}) == 1


def at_speed(allocator, rounds: int, rate) -> list:
    """Rounds whose metric grows by `rate(plan)` each, after an evaluation before; their plans."""
    level, plans = 0.0, []
    allocator.observe(record(0, Plan({}), level))
    for number in range(1, rounds + 1):
        plans.append(allocator.propose(number, cohort(number)))
        level += rate(plans[-1])
        allocator.observe(record(number, plans[-1], level))
    return plans


def seconds(plan) -> float:
    return max(SECONDS[tier(client_id)][mode] * plan.work.get(client_id, 1) for client_id, mode in plan.modes.items())


class TestRefinement:
    def test_shorter_rounds_that_lose_no_progress_take_over(self):
        plans = at_speed(ready(slowdown=0.0), 30, lambda plan: 0.01)
        assert [plan.logged["trial"] for plan in plans[:7]] == [0, 0, 1, 1, 0, 0, 1]
        assert {seconds(plan) for plan in plans[:2]} == {10.0}
        assert all(seconds(plan) == pytest.approx(5.0) for plan in plans[6:8])
        assert any("objective" in plan.logged for plan in plans)
        assert "takes over" in plans[6].reason

    def test_what_was_logged_decides(self):
        """The same run, but that shorter rounds made less progress: other plans follow."""
        kept = at_speed(ready(slowdown=0.0), 30, lambda plan: 0.01)
        lost = at_speed(ready(slowdown=0.0), 30, lambda plan: 0.01 * plan.logged["work"] ** 12)
        assert kept[:6] == lost[:6]
        assert kept[6].work != lost[6].work
        assert seconds(lost[-1]) == 10.0 > seconds(kept[-1])

    def test_where_all_clients_are_alike_rounds_are_not_shortened(self):
        allocator = HybridAllocator(qat_from=1.0)
        allocator.begin(context(client_seconds=lambda client_id, mode: SECONDS["phone"][mode]))
        plans = play(allocator, range(1, 31), times=dict.fromkeys(SECONDS, SECONDS["phone"]))
        assert all(not plan.work for plan in plans)
        assert any("is not worth trying" in plan.reason for plan in plans)

    def test_no_trial_makes_rounds_longer_than_slowdown_allows(self):
        for seed in range(5):
            plans = play(ready({"seed": seed}, slowdown=0.0), range(1, 31), metric=0.5)
            assert any(plan.logged["trial"] > 0 for plan in plans)
            assert max(seconds(plan) for plan in plans) == pytest.approx(10.0)  # a board's in ptq

    def test_whom_the_sampler_drew_makes_no_boundary_faster(self):
        """A round of phones alone is as long, in rounds with all steps of its cohort, as one with boards."""
        phones = [each for each in CLIENTS if tier(each) == "phone"]
        allocator = ready({"cohort": lambda number: phones if number == 1 else CLIENTS}, qat_from=1.0, window=9)
        lengths = []
        for number, drawn in ((1, phones), (2, CLIENTS)):
            allocator.observe(record(number, allocator.propose(number, drawn), 0.1))
            lengths.append(allocator.state_dict()["fine"]["standing"]["seconds"])
        assert lengths == [pytest.approx(0.0), pytest.approx(1.0)]  # the first ends before the first window begins

    def test_rounds_are_shortened_in_ptq_too(self):
        plans = at_speed(ready(qat_from=1.0), 30, lambda plan: 0.01)
        assert {mode for plan in plans for mode in plan.modes.values()} == {"ptq"}
        assert seconds(plans[6]) == pytest.approx(5.0)

    def test_the_beginning_of_qat_begins_the_comparison_anew(self):
        plans = at_speed(ready(qat_from=1 / 6), 30, lambda plan: 0.01)
        assert [plan.logged["trial"] for plan in plans[:11]] == [0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0]
        assert "QAT has begun" in plans[5].reason


class TestData:
    def test_without_labels_it_goes_by_updates_and_says_so(self):
        allocator = ready({"divergence": None})
        assert allocator.wants_update_divergence
        assert "direction of its updates" in allocator.explanation

    def test_with_labels_it_does_not_ask_for_updates(self):
        assert not ready().wants_update_divergence

    def test_a_label_measure_without_labels_is_refused(self):
        with pytest.raises(ConfigurationError, match="divergence='hellinger' needs the clients' label counts"):
            ready({"divergence": None}, divergence="hellinger")

    def test_updates_that_diverge_make_a_client_risky(self):
        allocator = ready({"divergence": None}, boundary={"slack": 0, "share": 0.1}, fine=False, least_work=1)
        play(allocator, range(1, 13), update_divergence=lambda client_id: 0.9 if client_id == 3 else 0.1)
        assert tier(3) == "board"
        assert allocator.propose(13, CLIENTS).modes[3] == "qat"
        assert allocator.propose(13, CLIENTS).modes[0] == "ptq"

    def test_sensitivities_are_relative_to_their_mean(self):
        boundary = {"slack": 0, "share": 0.25}
        allocator = ready(divergence=None, sensitivity="loss", boundary=boundary, fine=False, least_work=1)
        assert allocator.wanted_sensitivity == "loss"
        assert allocator.propose(1, CLIENTS).modes["site-d"] == "qat"  # the most sensitive board at the start
        play(allocator, range(1, 13), sensitivity=lambda client_id: 1 / (1 + CLIENTS.index(client_id)))
        assert allocator.propose(13, CLIENTS).modes[0] == "qat"
        assert allocator.propose(13, CLIENTS).modes["site-d"] == "ptq"

    def test_a_small_cohort_does_not_level_sensitivities(self):
        allocator = ready(divergence=None, sensitivity="loss", fine=False)
        before = [client["risk"] for client in allocator._map()]
        for number, client_id in enumerate(CLIENTS, start=1):
            plan = allocator.propose(number, [client_id])
            allocator.observe(record(number, plan, sensitivity=lambda client_id: 7.0))
        assert [client["risk"] for client in allocator._map()] == pytest.approx(before)

    def test_the_boundary_is_chosen_again_once_the_directions_are_known(self):
        def seconds(client_id, mode):
            return SECONDS[tier(client_id)][mode] * (1 + CLIENTS.index(client_id) / 100)

        changes = {"divergence": None, "client_seconds": seconds, "sensitivity": lambda *_: 0.2}
        allocator = ready(changes, slowdown=0.2, least_work=1, window=9)
        plans = play(
            allocator,
            range(1, 9),
            update_divergence=lambda client_id: 1.0 if client_id in (3, "site-d") else 0.01,
        )
        assert any("directions of most clients' updates are known" in plan.reason for plan in plans)

    def test_sensitivities_that_are_no_numbers_are_left_aside(self):
        allocator = ready({"sensitivity": lambda *_: None}, sensitivity="sqnr", qat_from=None)
        play(allocator, range(1, 4), sensitivity=lambda client_id: float("nan"))
        assert "not known" in allocator.explanation


class TestResume:
    @pytest.mark.parametrize("stop", [1, 3, 4, 7, 12, 20])
    def test_plans_go_on_bit_for_bit(self, stop):
        logged = {
            "sensitivity": lambda client_id: 1.0 + CLIENTS.index(client_id) % 4,
            "times": SLOWER,
        }
        whole = play(ready(sensitivity="loss"), range(1, 25), **logged)
        broken = ready(sensitivity="loss")
        begun = play(broken, range(1, stop + 1), **logged)
        resumed = ready(sensitivity="loss")
        resumed.load_state_dict(json.loads(json.dumps(broken.state_dict())))
        assert [*begun, *play(resumed, range(stop + 1, 25), **logged)] == whole

    @pytest.mark.parametrize(("part", "change"), [
        ("choice", lambda choice: choice | {"budget": 1.0}),
        ("choice", lambda choice: {name: value for name, value in choice.items() if name != "in_qat"}),
        ("knowledge", lambda knowledge: {}),
        ("fine", lambda fine: {}),
    ])  # fmt: skip
    def test_the_state_of_another_version_is_refused(self, part, change):
        state = ready().state_dict()
        state[part] = change(state[part])
        with pytest.raises(ConfigurationError, match=r"another version.*start a new run"):
            ready().load_state_dict(state)

    def test_the_files_of_a_resumed_run_are_whole(self, tmp_path):
        broken = ready()
        play(broken, range(1, 8))
        resumed = ready()
        resumed.load_state_dict(broken.state_dict())
        play(resumed, range(8, 12))
        resumed.write(tmp_path)
        written = json.loads((tmp_path / "allocation.json").read_text())
        assert [each["round"] for each in written["boundaries"]] == list(range(1, 12))
        assert {client["client_id"] for client in written["clients"]} == set(CLIENTS)
        assert (tmp_path / "study.log").exists()


@pytest.mark.parametrize(("window", "every"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_the_rounds_that_are_said_to_be_needed_are_needed(window, every):
    def tries(rounds: int) -> bool:
        allocator = ready({"max_rounds": rounds, "eval_every_n_rounds": every}, window=window)
        assert (f"too few to try another boundary; {needed} would do" in allocator.explanation) == (rounds < needed)
        allocator.observe(record(0, Plan({}), 0.0))
        plans = []
        for number in range(1, rounds + 1):
            plans.append(allocator.propose(number, cohort(number)))
            logged = record(number, plans[-1])
            is_evaluated = number % every == 0 or number == rounds
            allocator.observe(logged if is_evaluated else replace(logged, metric_fp=None, metric_quantized=None))
        return any(plan.logged["trial"] > 0 for plan in plans)

    needed = 3 * -(-window // every) * every + 1
    assert tries(needed)
    assert not tries(needed - 1)


def test_nobody_in_qat_is_said():
    equal = {"ptq": 1.0, "qat": 2.5}
    allocator = ready({"client_seconds": lambda client_id, mode: equal[mode], "sensitivity": lambda *_: 0.0})
    assert "By this boundary nobody trains in QAT: " in allocator.explanation
    assert "nobody trains in QAT" not in ready().explanation


class TestWarmStart:
    def test_a_resumed_run_does_not_read_them_again(self):
        HybridAllocator(warm_start=["gone"]).begin(context(resumes=True))
        with pytest.raises(ConfigurationError, match="gone"):
            HybridAllocator(warm_start=["gone"]).begin(context())

    def rows(self, rate=lambda plan: 0.01):
        plans = at_speed(ready(slowdown=0.0), 24, rate)
        return [
            {"round": number, "metric_quantized": 0.1, "seconds/virtual": 1.0 * number}
            | {f"allocation/{name}": value for name, value in plan.logged.items()}
            for number, plan in enumerate(plans, start=1)
        ]

    def test_judged_trials_of_an_earlier_run_are_taken_up(self):
        rows = self.rows()
        trials, last, costs = learned_by(rows, "before")
        assert len(trials) == 1 + len({row["allocation/judged"] for row in rows if "allocation/judged" in row})
        assert trials[0].value == 0.0
        assert trials[1].value > 0.9
        assert all(trial.origin == "before" and trial.state == "COMPLETE" for trial in trials)
        assert last == trials[1].boundary == Boundary(-0.5, 0.0)
        assert not costs

    @pytest.fixture
    def earlier(self, monkeypatch):
        """Rows of earlier runs by name, instead of files."""
        kept = {}
        monkeypatch.setattr("fedhq_lightning.run.read_history", lambda run: make_history(run, kept[run], {}))
        return kept

    def test_a_run_starts_where_the_earlier_one_ended_and_other_logged_values_start_it_elsewhere(self, earlier):
        earlier["shorter"] = self.rows()
        earlier["as-long"] = self.rows(lambda plan: 0.01 * plan.logged["work"] ** 12)
        plans = {run: ready(slowdown=0.0, warm_start=run).propose(1, cohort(1)) for run in earlier}
        assert plans["shorter"].logged["slack"] == -0.5
        assert plans["as-long"].logged["slack"] == 0.0
        assert plans["shorter"].work != plans["as-long"].work
        assert "The boundary is the one that shorter ended with." in ready(warm_start="shorter").explanation

    def test_the_study_asks_by_what_earlier_runs_logged(self, earlier):
        """Two runs that logged other objectives for the same trials: other boundaries are tried next."""
        rows = self.rows(lambda plan: 0.01 * plan.logged["work"] ** 12)
        earlier["as-logged"] = rows
        earlier["reversed"] = [
            row | {"allocation/objective": -row["allocation/objective"]} if "allocation/objective" in row else row
            for row in rows
        ]
        tried = {
            run: next(
                plan
                for plan in at_speed(ready(warm_start=run), 30, lambda plan: 0.01)
                if plan.logged["trial"] != plan.logged["incumbent"]
            )
            for run in earlier
        }
        assert tried["as-logged"].logged["slack"] != tried["reversed"].logged["slack"]

    @pytest.mark.parametrize(("cost", "mode"), [(0.02, "qat"), (0.0, "ptq")])
    def test_what_rounding_was_seen_to_cost_decides_when_qat_begins(self, earlier, cost, mode):
        """The same earlier run, but that other values were logged of the float32 model: another plan for round 1."""
        earlier["before"] = [row | {"metric_fp": 0.1 + cost, "clients/qat": 0} for row in self.rows()[:6]] + [
            row | {"metric_fp": 0.1, "clients/qat": 3} for row in self.rows()[6:]
        ]
        allocator = ready({"sensitivity": lambda *_: 0.0}, qat_from=None, warm_start="before")
        assert set(allocator.propose(1, cohort(1)).modes.values()) >= {mode}
        assert ("was seen in the earlier run, so QAT begins at once" in allocator.explanation) == (mode == "qat")
        resumed = ready({"sensitivity": lambda *_: 0.0, "resumes": True}, qat_from=None, warm_start="gone")
        resumed.load_state_dict(json.loads(json.dumps(allocator.state_dict())))
        assert resumed.explanation == allocator.explanation
        assert resumed.propose(2, cohort(2)) == allocator.propose(2, cohort(2))

    def test_objectives_of_one_run_after_another_add_up(self, earlier):
        first = self.rows()
        second = [row | {"allocation/slack": -0.5} for row in first[:2]]
        second[0] |= {"allocation/trial": 5, "allocation/incumbent": 5}
        second[1] |= {"allocation/trial": 6, "allocation/incumbent": 5, "allocation/slack": -0.4}
        second.append(second[0] | {"round": 3, "allocation/judged": 6, "allocation/objective": 0.25})
        earlier |= {"first": first, "second": second}
        trials, last, _ = learned_before(["first", "second"])
        start = next(trial.value for trial in trials if trial.boundary == Boundary(-0.5, 0.0))
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert [trial.value for trial in trials[-2:]] == [start, pytest.approx(start + 0.25)]
        assert last == Boundary(-0.5, 0.0)

    def test_a_given_boundary_goes_before_that_of_an_earlier_run(self, earlier):
        earlier["before"] = self.rows()
        allocator = ready(boundary={"slack": 0.1, "share": 0}, warm_start="before")
        assert allocator.propose(1, cohort(1)).logged["slack"] == 0.1
        assert "The boundary was given." in allocator.explanation

    def test_a_run_without_boundaries_is_refused_with_what_it_logged(self):
        with pytest.raises(ConfigurationError, match="it logged metric_quantized, round"):
            learned_by([{"round": 1, "metric_quantized": 0.3}], "before")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"divergence": "total_variaton"}, "did you mean 'total_variation'"),
        ({"sensitivity": "snr"}, "did you mean 'sqnr'"),
        ({"window": 0}, "window 0 must be a whole number"),
        ({"window": True}, "window True must be"),
        ({"boundary": {"slack": 0.1}}, "it needs slack and share"),
        ({"boundary": {"slack": -1.5, "share": 0.5}}, "slack -1.5 must be"),
        ({"least_work": 0}, "least_work 0 must be a number above 0, up to 1"),
        ({"least_work": 1.5}, "least_work 1.5 must be"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        HybridAllocator(**arguments)


def test_many_clients_need_no_list_of_answers():
    asked = set()

    def seconds(client_id, mode):
        asked.add(client_id)
        return SECONDS["phone"][mode]

    many = context(
        client_ids=range(1_000_000),
        client_seconds=seconds,
        divergence=lambda client_id, measure: (client_id % 100) / 100,
        sensitivity=lambda client_id, measure: 0.1,
        tier=lambda client_id: "phone",
        cohort=lambda number: range(1000 * number, 1000 * number + 1000),
    )
    HybridAllocator().begin(many)
    assert len(asked) < 50_000
