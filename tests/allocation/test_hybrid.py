"""The hybrid allocator, from analyses to plans and back from what was logged."""

import json
from dataclasses import replace

import pytest

from fedhq_lightning.allocation import HybridAllocator
from fedhq_lightning.allocation.warm_start import trials_in
from fedhq_lightning.errors import ConfigurationError

from .played import CLIENTS, SECONDS, SLOWER, cohort, context, play, ready, record, tier


def test_both_modes_are_planned_and_the_boundary_is_logged():
    plan = ready().propose(1, CLIENTS)
    assert 0 < plan.counts()["qat"] < len(CLIENTS)
    assert set(plan.logged) == {"slack", "share", "seconds", "risk", "trial", "incumbent"}


def test_the_explanation_names_both_analyses_and_the_boundary():
    text = ready().explanation
    for words in ("4 board with 10 in ptq and 13 in qat", "total variation", "T ="):
        assert words in text
    assert "rho =" in ready(boundary={"slack": 0, "share": 0.3}).explanation
    assert "rho =" not in ready(boundary={"slack": 0, "share": 0}).explanation


def test_longer_rounds_pay_for_more_qat():
    def share_in_qat(slowdown: float) -> int:
        return sum(plan.counts()["qat"] for plan in play(ready(fine=False, slowdown=slowdown), range(1, 10)))

    assert share_in_qat(0.0) < share_in_qat(0.2) <= share_in_qat(0.5)


def test_a_device_without_the_memory_is_never_given_qat():
    allocator = ready({"fits": lambda client_id, mode: tier(client_id) == "phone"}, boundary={"slack": 9, "share": 1})
    assert {client_id for client_id, mode in allocator.propose(1, CLIENTS).modes.items() if mode == "qat"} == {
        client_id for client_id in CLIENTS if tier(client_id) == "phone"
    }


def test_without_refinement_the_boundary_stays():
    plans = play(ready(fine=False), range(1, 25))
    assert len({(plan.logged["slack"], plan.logged["share"]) for plan in plans}) == 1


def test_refinement_tries_other_boundaries_and_logs_verdicts():
    plans = play(ready(), range(1, 25))
    assert {plan.logged["trial"] for plan in plans} > {0.0, 1.0}
    assert any("objective" in plan.logged for plan in plans)


def test_no_trial_makes_rounds_longer_than_slowdown_allows():
    def seconds(plan) -> float:
        return max(SECONDS[tier(client_id)][mode] for client_id, mode in plan.modes.items())

    for seed in range(5):
        plans = play(ready({"seed": seed}, slowdown=0.0), range(1, 31), metric=0.5)
        assert any(plan.logged["trial"] > 0 for plan in plans)
        assert {seconds(plan) for plan in plans} == {10.0}  # a board's in ptq


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
        allocator = ready({"divergence": None}, boundary={"slack": 0, "share": 0.1}, fine=False)
        play(allocator, range(1, 13), update_divergence=lambda client_id: 0.9 if client_id == 3 else 0.1)
        assert tier(3) == "board"
        assert allocator.propose(13, CLIENTS).modes[3] == "qat"
        assert allocator.propose(13, CLIENTS).modes[0] == "ptq"

    def test_sensitivities_are_relative_to_their_mean(self):
        allocator = ready(divergence=None, sensitivity="loss", boundary={"slack": 0, "share": 0.25}, fine=False)
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

        allocator = ready({"divergence": None, "client_seconds": seconds, "sensitivity": lambda *_: 0.2})
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


@pytest.mark.parametrize(
    ("window", "every", "start"), [(1, 1, 0.0), (2, 1, 0.0), (2, 3, 0.0), (3, 2, 0.0), (2, 1, 0.5)]
)
def test_the_rounds_that_are_said_to_be_needed_are_needed(window, every, start):
    def tries(rounds: int) -> bool:
        allocator = ready({"max_rounds": rounds, "eval_every_n_rounds": every}, window=window, qat_from=start)
        assert (f"too few to try another boundary; {needed} would do" in allocator.explanation) == (rounds < needed)
        plans = []
        for number in range(1, rounds + 1):
            plans.append(allocator.propose(number, cohort(number)))
            logged = record(number, plans[-1])
            is_evaluated = number % every == 0 or number == rounds
            allocator.observe(logged if is_evaluated else replace(logged, metric_fp=None, metric_quantized=None))
        return any(plan.logged["trial"] > 0 or "no boundary nearby" in plan.reason for plan in plans)

    needed = every + 3 * -(-window // every) * every + 1
    if start:
        needed = 14  # the last 8 of which are those that are needed
    assert tries(needed)
    assert not tries(needed - 1)


def test_nobody_in_qat_is_said():
    equal = {"ptq": 1.0, "qat": 2.0}
    allocator = ready({"client_seconds": lambda client_id, mode: equal[mode], "sensitivity": lambda *_: 0.0})
    assert "By this boundary nobody trains in qat: " in allocator.explanation
    assert "nobody trains in qat" not in ready().explanation


class TestWarmStart:
    def test_a_resumed_run_does_not_read_them_again(self):
        HybridAllocator(warm_start=["gone"]).begin(context(resumes=True))
        with pytest.raises(ConfigurationError, match="gone"):
            HybridAllocator(warm_start=["gone"]).begin(context())

    def rows(self):
        plans = play(ready(), range(1, 25))
        return [
            {"round": number, "metric_quantized": 0.1}
            | {f"allocation/{name}": value for name, value in plan.logged.items()}
            for number, plan in enumerate(plans, start=1)
        ]

    def test_judged_trials_of_an_earlier_run_are_taken_up(self):
        rows = self.rows()
        trials = trials_in(rows, "before")
        assert len(trials) == 1 + len({row["allocation/judged"] for row in rows if "allocation/judged" in row})
        assert trials[0].value == 0.0
        assert all(trial.origin == "before" and trial.state == "COMPLETE" for trial in trials)

    def test_a_run_without_boundaries_is_refused_with_what_it_logged(self):
        with pytest.raises(ConfigurationError, match="it logged metric_quantized, round"):
            trials_in([{"round": 1, "metric_quantized": 0.3}], "before")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"divergence": "total_variaton"}, "did you mean 'total_variation'"),
        ({"sensitivity": "snr"}, "did you mean 'sqnr'"),
        ({"window": 0}, "window 0 must be a whole number"),
        ({"window": True}, "window True must be"),
        ({"boundary": {"slack": 0.1}}, "it needs slack and share"),
        ({"boundary": {"slack": -1.5, "share": 0.5}}, "slack -1.5 must be"),
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
