"""The hybrid allocator, from analyses to plans and back from what was logged."""

import json
from dataclasses import replace

import pytest

from fedhq_lightning.allocation import AllocationContext, HybridAllocator
from fedhq_lightning.allocation.warm_start import trials_in
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.records import ClientRecord, RoundRecord

CLIENTS = [*range(6), *(f"site-{letter}" for letter in "abcdef")]
SECONDS = {"board": {"fp": 9.0, "ptq": 10.0, "qat": 13.0}, "phone": {"fp": 4.0, "ptq": 3.0, "qat": 5.0}}

SLOWER = {"board": {"fp": 9.0, "ptq": 30.0, "qat": 33.0}, "phone": {"fp": 4.0, "ptq": 9.0, "qat": 11.0}}


def tier(client_id) -> str:
    return "board" if CLIENTS.index(client_id) % 3 == 0 else "phone"


def cohort(round_number: int) -> list:
    return [CLIENTS[(round_number + step) % 12] for step in range(6)]


def context(**changes) -> AllocationContext:
    given = AllocationContext(
        client_ids=CLIENTS,
        seed=5,
        client_seconds=lambda client_id, mode: SECONDS[tier(client_id)][mode],
        divergence=lambda client_id, measure: CLIENTS.index(client_id) / 12,
        sensitivity=lambda client_id, measure: {"sqnr": 0.1, "loss": 1.0 + CLIENTS.index(client_id)}[measure],
        tier=tier,
        cohort=cohort,
        max_rounds=30,
    )
    return replace(given, **changes)


def ready(changes=None, **arguments) -> HybridAllocator:
    allocator = HybridAllocator(**{"qat_from": 0.0, "slowdown": 0.1} | arguments)
    allocator.begin(context(**(changes or {})))
    return allocator


def record(round_number, plan, metric=None, times=SECONDS, sensitivity=None, update_divergence=None) -> RoundRecord:
    clients = tuple(
        ClientRecord(
            round=round_number,
            client_id=client_id,
            tier=tier(client_id),
            mode=mode,
            status="ok",
            num_examples=10,
            num_steps=1,
            metrics={},
            fit_wall_seconds=0.1,
            download_seconds=0.0,
            compute_seconds=times[tier(client_id)][mode],
            upload_seconds=0.0,
            uplink_bytes=1,
            downlink_bytes=1,
            sensitivity=None if sensitivity is None else sensitivity(client_id),
            update_divergence=None if update_divergence is None else update_divergence(client_id),
        )
        for client_id, mode in plan.modes.items()
    )
    seconds = max(client.virtual_seconds for client in clients)
    metric = 0.01 * round_number if metric is None else metric
    return RoundRecord(
        round=round_number,
        metrics={},
        metric_fp=metric,
        metric_quantized=metric,
        wall_seconds=1.0,
        fit_wall_seconds=1.0,
        allocator_seconds=0.0,
        virtual_seconds=seconds,
        total_wall_seconds=float(round_number),
        total_virtual_seconds=10.0 * round_number,
        uplink_bytes=1,
        downlink_bytes=1,
        mode_counts=plan.counts(),
        quarantined=0,
        late=0,
        clients=clients,
        reason=plan.reason,
        allocation=dict(plan.logged),
    )


def play(allocator: HybridAllocator, rounds, **logged) -> list:
    plans = []
    for number in rounds:
        plans.append(allocator.propose(number, cohort(number)))
        allocator.observe(record(number, plans[-1], **logged))
    return plans


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


class TestStart:
    def test_ptq_comes_first_where_rounding_destroys_much(self):
        allocator = ready(qat_from=None)
        assert "destroys 10.0% of the power" in allocator.explanation
        assert "qat begins in round 16, ptq is for everybody before" in allocator.explanation
        plans = play(allocator, range(1, 31), metric=0.5)
        modes = [set(plan.modes.values()) for plan in plans]
        assert modes[:15] == [{"ptq"}] * 15
        assert {"ptq", "qat"} in modes[15:]
        # No boundary was on trial while none counted.
        assert {plan.logged["trial"] for plan in plans[:16]} == {0}
        assert {plan.logged["seconds"] for plan in plans[:15]} == {0.0}
        assert all(plan.logged["seconds"] > 0 for plan in plans[15:])

    def test_it_begins_at_once_where_rounding_destroys_nothing(self):
        allocator = ready({"sensitivity": lambda *_: 1e-4}, qat_from=None)
        assert (
            "destroys 0.0% of the power of the initial model's output, so qat begins at once." in allocator.explanation
        )
        assert allocator.propose(1, CLIENTS).counts()["qat"] > 0

    def test_it_can_be_given(self):
        allocator = ready(qat_from=0.1)
        assert "As was given, qat begins in round 4" in allocator.explanation
        assert [plan.counts()["qat"] > 0 for plan in play(allocator, range(1, 5))] == [False, False, False, True]

    def test_a_resumed_run_begins_when_the_first_one_would(self):
        first = ready(qat_from=None)
        # Set-up need not measure the same to the last bit on another machine.
        resumed = ready({"resumes": True, "sensitivity": lambda *_: 0.01}, qat_from=None)
        resumed.load_state_dict(first.state_dict())
        assert [resumed.propose(number, CLIENTS).modes for number in (15, 16)] == [
            first.propose(number, CLIENTS).modes for number in (15, 16)
        ]


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


class TestTimes:
    """The fleet's stated int8 gain is three times the real one, so that ptq is slower than predicted."""

    def test_logged_times_correct_predicted_ones(self):
        allocator = ready()
        before = allocator.propose(1, CLIENTS).logged["seconds"]
        play(allocator, range(1, 4), times=SLOWER)
        assert allocator.propose(4, CLIENTS).logged["seconds"] > 2 * before

    def test_the_coarse_boundary_does_not_learn(self):
        allocator = ready(fine=False)
        before = allocator.propose(1, CLIENTS).logged["seconds"]
        play(allocator, range(1, 4), times=SLOWER)
        assert allocator.propose(4, CLIENTS).logged["seconds"] == before

    def test_right_predictions_change_nothing(self):
        allocator = ready()
        play(allocator, range(1, 4))
        assert all(logged == predicted for _, _, logged, predicted in allocator.state_dict()["knowledge"]["times"])
        assert [trial["number"] for trial in allocator.state_dict()["fine"]["trials"] if trial["value"] == 0.0] == [0]

    def test_who_is_drawn_does_not_make_a_device_faster_or_slower(self):
        """Clients of one tier differ in their links and sizes; their fits are three times as long as stated."""

        def link(client_id) -> float:
            return 1.0 + CLIENTS.index(client_id)

        def compute(client_id, mode) -> float:
            return (1 + CLIENTS.index(client_id) % 5) * SECONDS[tier(client_id)][mode]

        allocator = ready(
            {
                "client_seconds": lambda client_id, mode: link(client_id) + compute(client_id, mode),
                "link_seconds": link,
            }
        )
        for number in range(1, 13):
            plan = allocator.propose(number, cohort(number))
            plain = record(number, plan)
            clients = tuple(
                replace(each, compute_seconds=3 * compute(each.client_id, each.mode)) for each in plain.clients
            )
            allocator.observe(replace(plain, clients=clients))
        starts = [trial for trial in allocator.state_dict()["fine"]["trials"] if trial["value"] == 0.0]
        assert len(starts) <= 3  # the first, and one or two once both modes have been seen

    def test_late_clients_tell_no_times(self):
        allocator = ready()
        plan = allocator.propose(1, cohort(1))
        plain = record(1, plan, times=SLOWER)
        allocator.observe(replace(plain, clients=tuple(replace(each, status="late") for each in plain.clients)))
        assert allocator.state_dict()["knowledge"]["times"] == []

    def test_measuring_sensitivity_counts_against_the_deadline(self):
        changes = {"round_deadline": 13.5, "analysis_seconds": lambda client_id: 1.0}
        boundary = {"slack": 0, "share": 1}
        assert ready(changes, boundary=boundary, fine=False).propose(1, CLIENTS).modes[0] == "qat"
        measuring = ready(changes, boundary=boundary, fine=False, sensitivity="loss")
        assert measuring.propose(1, CLIENTS).modes[0] == "ptq"

    def test_a_mode_that_mis_statement_hides_is_tried(self):
        """Stated: qat is the faster mode, so that nobody would ever train in ptq. Really ptq is."""
        stated = {name: {"ptq": 2 * own["qat"], "qat": 1.2 * own["qat"]} for name, own in SECONDS.items()}
        allocator = ready(
            {"seconds_on": lambda fleet: lambda client_id, mode: stated[tier(client_id)][mode]}, fleet="mixed"
        )
        plans = play(allocator, range(1, 10))
        assert plans[0].counts()["ptq"] == 0
        assert plans[1].counts()["ptq"] == 2  # one a tier
        assert "tries ptq" in plans[1].reason
        assert plans[-1].logged["seconds"] == pytest.approx(SECONDS["board"]["ptq"], rel=0.2)

    def test_a_stated_fleet_is_believed_until_then(self):
        stated = {"board": {"ptq": 1.0, "qat": 1.1}, "phone": {"ptq": 1.0, "qat": 1.05}}
        allocator = ready(
            {"seconds_on": lambda fleet: lambda client_id, mode: stated[tier(client_id)][mode]}, fleet="mixed"
        )
        assert allocator.propose(1, CLIENTS).logged["seconds"] < 2


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
    assert "By this boundary nobody trains in qat." in allocator.explanation
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
        ({"boundary": {"slack": -1, "share": 0.5}}, "slack -1 must be"),
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
