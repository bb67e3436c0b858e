"""Windows, challengers, and who takes over."""

import json
import random
from collections.abc import Callable

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fedhq_lightning.allocation.boundary import Boundary
from fedhq_lightning.allocation.fine import FineAdjustment
from fedhq_lightning.allocation.study import BoundaryStudy, Trial

START = Boundary(0.0, 0.2)
SLACKS = (-0.5, 0.3)
SHORTEST = Boundary(-0.5, 0.2)
Rate = Callable[[Boundary], float]


def adjustment(
    seed: int = 1, max_rounds: int = 60, window: int | None = 2, sign: float = 1.0, worth: bool = True
) -> FineAdjustment:
    study = BoundaryStudy(seed, SLACKS)
    study.add(START, 0.0)

    def saved(challenger: Boundary, incumbent: Boundary, rounds: range) -> float | None:
        return 1 - seconds(challenger) / seconds(incumbent) if worth else None

    return FineAdjustment(study, window, max_rounds, sign, saved)


def seconds(boundary: Boundary) -> float:
    return 10.0 * (1 + boundary.slack)


def play(fine: FineAdjustment, rate: Rate, rounds: int, noise: float = 0.0, seed: int = 0) -> list[int]:
    """Rounds, after an evaluation before, whose metric grows by `rate(boundary)` each; the trial of every round."""
    generator = random.Random(seed)
    used, level = [], 2.0
    fine.observe(0, 0.0, level)
    for number in range(1, rounds + 1):
        used.append(fine.current.number)
        boundary = fine.current.boundary
        level += rate(boundary)
        fine.observe(number, seconds(boundary), level + generator.gauss(0, noise))
    return used


def as_much_per_second(boundary: Boundary) -> float:
    return 0.01 * (1 + boundary.slack)


def test_it_starts_with_the_boundary_given():
    assert adjustment().current.boundary == START
    assert adjustment().current.number == 0


def test_windows_alternate_between_challengers_and_the_incumbent():
    used = play(adjustment(), lambda boundary: 0.01 if boundary == START else -0.01, 22)
    assert used[:10] == [0, 0, 1, 1, 0, 0, 2, 2, 0, 0]


def test_the_first_challenger_makes_the_shortest_rounds():
    fine = adjustment()
    play(fine, lambda boundary: 0.01, 2)
    assert fine.current.boundary == SHORTEST


def test_shorter_rounds_with_the_same_progress_take_over_and_the_run_ends_sooner():
    fine = adjustment()
    used = play(fine, lambda boundary: 0.01, 30)
    assert used[:7] == [0, 0, 1, 1, 0, 0, 1]
    assert fine.incumbent.boundary == SHORTEST
    assert "takes over" in fine.reason or fine.incumbent.number == 1


def test_shorter_rounds_that_only_train_less_do_not_take_over():
    taken = 0
    for seed in range(10):
        fine = adjustment(seed=seed)
        play(fine, lambda boundary: as_much_per_second(boundary) * (0.7 if boundary.slack < 0 else 1.0), 30, 1e-4, seed)
        taken += fine.incumbent.boundary.slack < 0
    assert taken == 0


def test_longer_rounds_take_over_if_they_are_worth_it():
    fine = adjustment(max_rounds=200)
    play(fine, lambda boundary: 0.01 * (1 + boundary.slack) ** 3, 200, noise=1e-4)
    assert fine.incumbent.boundary.slack > 0.1


def test_noise_alone_rarely_makes_rounds_longer():
    taken = 0
    for seed in range(20):
        fine = adjustment(seed=seed, max_rounds=30)
        play(fine, as_much_per_second, 30, noise=0.02, seed=seed)
        taken += seconds(fine.incumbent.boundary) > seconds(START)
    assert taken <= 4


def test_a_bad_trial_costs_its_window_and_no_more():
    used = play(adjustment(max_rounds=40), lambda boundary: 0.01 if boundary == START else -0.05, 40)
    assert all(used.count(number) == 2 for number in set(used) - {0})


def test_smaller_is_better_where_the_sign_says_so():
    fine = adjustment(sign=-1.0)
    play(fine, lambda boundary: -0.01, 30)
    assert fine.incumbent.boundary == SHORTEST
    fine = adjustment(sign=-1.0)
    play(fine, lambda boundary: 0.01 if boundary.slack < 0 else -0.01, 30)
    assert fine.incumbent.boundary.slack >= 0


def test_no_challenger_that_could_not_be_judged_any_more():
    assert play(adjustment(max_rounds=6), lambda boundary: 0.01, 6) == [0] * 6
    assert 1 in play(adjustment(max_rounds=7), lambda boundary: 0.01, 7)


def test_without_a_window_nothing_changes():
    assert play(adjustment(window=None), lambda boundary: 0.01, 20) == [0] * 20


def test_where_no_boundary_is_worth_trying_the_incumbent_stays():
    fine = adjustment(worth=False)
    assert play(fine, lambda boundary: 0.01, 30) == [0] * 30
    assert "is not worth trying" in fine.reason


def test_rounds_without_evaluation_lengthen_the_window():
    fine = adjustment()
    used = []
    fine.observe(0, 0.0, 2.0)
    for number in range(1, 31):
        used.append(fine.current.number)
        fine.observe(number, 10.0, 2 + 0.01 * number if number % 3 == 0 else None)
    assert used[:9] == [0] * 3 + [1] * 3 + [0] * 3


def test_without_an_evaluation_before_round_1_the_first_window_begins_with_the_first_one():
    fine = adjustment()
    used = []
    for number in range(1, 8):
        used.append(fine.current.number)
        fine.observe(number, 10.0, 2 + 0.01 * number)
    assert used == [0, 0, 0, 1, 1, 0, 0]


def test_a_value_that_is_no_number_fails_the_trial_and_keeps_the_incumbent():
    fine = adjustment()
    for number in range(20):
        fine.observe(number, 10.0, float("nan") if fine.current.number == 1 else 2 + 0.01 * number)
    assert fine.trials[1].state == "FAIL"
    assert fine.incumbent.number != 1


def test_a_value_of_the_incumbents_that_is_no_number_fails_nobody():
    fine = adjustment()
    for number in range(30):
        fine.observe(number, 10.0, float("nan") if number == 5 else 2 + 0.01 * number)
    assert "FAIL" not in {trial.state for trial in fine.trials}
    assert fine.trials[1].state == "COMPLETE"


def test_a_change_of_phase_begins_the_comparison_anew():
    fine = adjustment()
    play(fine, lambda boundary: 0.01, 4)
    assert fine.state_dict()["standing"]["tried"] is not None
    fine.begin_anew("qat has begun")
    used = []
    for number in range(5, 12):
        used.append(fine.current.number)
        fine.observe(number, 10.0, 2 + 0.01 * number)
    assert used == [0, 0, 1, 1, 0, 0, used[-1]]
    assert fine.trials[1].state == "COMPLETE"


def test_verdicts_are_told_once():
    fine = adjustment()
    told = []
    for number in range(19):
        told.append(fine.take_verdict())
        fine.observe(number, 10.0, 2 + 0.01 * number - (0.1 if fine.current.number else 0))
    assert [each["judged"] for each in told if each] == [1.0, 2.0, 3.0]
    assert all(set(each) == {"judged", "objective"} for each in told if each)


def test_objectives_add_up_over_boundaries_that_took_over():
    fine = adjustment()
    play(fine, lambda boundary: 0.01, 12)
    first = fine.trials[1].value
    assert first == pytest.approx(1.0, abs=0.01)  # twice as fast as the start
    assert fine.trials[2].value == pytest.approx(first + 10 * 0.5 / seconds(fine.trials[2].boundary) - 1, abs=0.05)


@pytest.mark.parametrize("stop", range(1, 26, 3))
def test_a_resumed_adjustment_goes_on_bit_for_bit(stop):
    def rate(boundary: Boundary) -> float:
        return 0.01 + 0.03 * boundary.share

    unbroken = adjustment()
    whole = play(unbroken, rate, 30)
    broken = adjustment()
    begun = play(broken, rate, stop)
    resumed = adjustment()
    resumed.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    level = 2.0
    for number in begun:
        level += rate(broken.trials[number].boundary)
    for number in range(stop + 1, 31):
        begun.append(resumed.current.number)
        boundary = resumed.current.boundary
        level += rate(boundary)
        resumed.observe(number, seconds(boundary), level)
    assert begun == whole
    assert resumed.trials == unbroken.trials


def test_another_coarse_boundary_is_taken_up_while_no_trial_has_won():
    fine = adjustment()
    play(fine, lambda boundary: 0.01, 3)
    assert fine.current.number == 1
    fine.restart(Boundary(0.1, 0.0), "times changed")
    fine.observe(4, 10.0, 100.0)  # the round that was under way had another boundary
    assert fine.state_dict()["standing"]["before"] is None
    assert fine.current.boundary == Boundary(0.1, 0.0)
    assert fine.trials[1].state == "FAIL"


def test_a_boundary_that_has_won_is_kept_whatever_the_analysis_says():
    fine = adjustment()
    play(fine, lambda boundary: 0.01, 10)
    won = fine.incumbent
    assert won.number > 0
    fine.restart(Boundary(0.1, 0.0), "times changed")
    assert fine.incumbent == won


class TestStudy:
    def study(self, seed: int = 3) -> BoundaryStudy:
        study = BoundaryStudy(seed, SLACKS)
        study.add(START, 0.0)
        return study

    def test_the_first_question_is_the_shortest_round_and_all_others_lie_in_reach(self):
        study = self.study()
        assert study.ask(START) == SHORTEST
        assert study.ask(START, 2) == SHORTEST
        asked = [study.ask(START, attempt) for attempt in range(3, 30)]
        assert all(-0.5 <= each.slack <= 0.3 and 0 <= each.share <= START.share + 0.3 for each in asked)
        assert min(each.slack for each in asked) < -0.4 < 0.2 < max(each.slack for each in asked)

    def test_with_earlier_trials_it_asks_by_what_they_found(self):
        study = self.study()
        study.add(SHORTEST, 0.9)
        assert study.ask(START) != SHORTEST

    def test_asking_again_gives_the_same(self):
        study = self.study()
        assert study.ask(START, 3) == study.ask(START, 3) == self.study().ask(START, 3)
        assert study.ask(START, 3) != study.ask(START, 4)
        assert study.ask(START, 3) != self.study(seed=4).ask(START, 3)

    def test_it_learns_where_objectives_are_high(self):
        study = self.study()
        for _ in range(40):
            asked = study.ask(Boundary(0.2, 0.5), 1)
            study.tell(study.add(asked, None).number, 1 - abs(asked.share - 0.6))
        last = [trial.boundary.share for trial in study.trials[-15:]]
        assert sum(abs(share - 0.6) for share in last) / len(last) < 0.12  # at random 0.167

    def test_the_file_is_a_study_that_optuna_opens(self, tmp_path):
        study = self.study()
        study.tell(study.add(Boundary(0.3, 0.1), None).number, None)
        study.add(Boundary(0.9, 0.8), None)
        study.write(tmp_path / "study.log")
        study.write(tmp_path / "study.log")
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
        opened = optuna.load_study(study_name="fedhq", storage=storage)
        assert [trial.state.name for trial in opened.trials] == ["COMPLETE", "FAIL", "RUNNING"]
        assert opened.best_trial.params == {"slack": 0.0, "share": 0.2}
        assert [path.name for path in tmp_path.iterdir()] == ["study.log"]

    def test_trials_travel_as_plain_values(self):
        trial = Trial(4, Boundary(0.1, 0.2), None, "RUNNING", "elsewhere")
        assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial
