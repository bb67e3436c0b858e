"""What the hybrid allocator learns from logged times."""

from dataclasses import replace

import pytest

from .played import CLIENTS, SECONDS, SLOWER, STEPS, cohort, play, ready, record, tier


class TestTimes:
    """The fleet's stated int8 gain is three times the real one, so that ptq is slower than predicted."""

    def test_logged_times_correct_predicted_ones(self):
        allocator = ready(window=9)
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
        times = allocator.state_dict()["knowledge"]["times"]
        assert all(logged == pytest.approx(predicted, rel=1e-12) for _, _, logged, predicted in times)
        assert allocator.state_dict()["fine"]["start"] == 0

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
                replace(each, compute_seconds=3 * compute(each.client_id, each.mode) * each.num_steps / STEPS)
                for each in plain.clients
            )
            allocator.observe(replace(plain, clients=clients))
        starts = [trial for trial in allocator.state_dict()["fine"]["trials"] if trial["value"] == 0.0]
        assert len(starts) <= 3  # the first, and one or two once both modes have been seen

    def test_what_is_computed_beside_the_steps_is_no_slower_device(self):
        """Static activation ranges are calibrated in one pass, however few steps a client takes."""
        allocator = ready({"calibration_seconds": lambda client_id, mode: 0.0 if mode == "qat" else 2.0}, qat_from=1.0)
        works = set()
        for number in range(1, 9):
            plan = allocator.propose(number, cohort(number))
            works |= set(plan.work.values())
            plain = record(number, plan)
            clients = tuple(
                replace(each, compute_seconds=2 + each.num_steps / STEPS * (SECONDS[each.tier]["ptq"] - 2))
                for each in plain.clients
            )
            allocator.observe(replace(plain, clients=clients))
        assert min(works) < 0.6
        times = allocator.state_dict()["knowledge"]["times"]
        assert all(logged == pytest.approx(predicted, rel=1e-12) for _, _, logged, predicted in times)

    def test_late_clients_tell_no_times(self):
        allocator = ready()
        plan = allocator.propose(1, cohort(1))
        plain = record(1, plan, times=SLOWER)
        allocator.observe(replace(plain, clients=tuple(replace(each, status="late") for each in plain.clients)))
        assert allocator.state_dict()["knowledge"]["times"] == []

    def test_measuring_sensitivity_counts_against_the_deadline(self):
        changes = {"round_deadline": 13.5, "analysis_seconds": lambda client_id: 1.0}
        boundary = {"slack": 0, "share": 1}
        assert ready(changes, boundary=boundary, fine=False, least_work=1).propose(1, CLIENTS).modes[0] == "qat"
        measuring = ready(changes, boundary=boundary, fine=False, least_work=1, sensitivity="loss")
        assert measuring.propose(1, CLIENTS).modes[0] == "ptq"

    def test_a_mode_that_mis_statement_hides_is_tried(self):
        """Stated: qat is the faster mode, so that nobody would ever train in ptq. Really ptq is."""
        stated = {name: {"ptq": 2 * own["qat"], "qat": 1.2 * own["qat"]} for name, own in SECONDS.items()}
        allocator = ready(
            {"seconds_on": lambda fleet: lambda client_id, mode: stated[tier(client_id)][mode]},
            fleet="mixed",
            window=9,
        )
        plans = play(allocator, range(1, 10))
        assert plans[0].counts()["ptq"] == 0
        assert plans[1].counts()["ptq"] == 2  # one a tier
        assert "tries ptq" in plans[1].reason
        of_the_incumbent = [plan for plan in plans if plan.logged["trial"] == plan.logged["incumbent"]]
        assert of_the_incumbent[-1].logged["seconds"] == pytest.approx(SECONDS["board"]["ptq"], rel=0.2)

    def test_a_stated_fleet_is_believed_until_then(self):
        stated = {"board": {"ptq": 1.0, "qat": 1.1}, "phone": {"ptq": 1.0, "qat": 1.05}}
        allocator = ready(
            {"seconds_on": lambda fleet: lambda client_id, mode: stated[tier(client_id)][mode]}, fleet="mixed"
        )
        assert allocator.propose(1, CLIENTS).logged["seconds"] < 2
