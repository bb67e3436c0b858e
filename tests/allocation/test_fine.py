"""Windows, challengers, and an incumbent that stays unless it is beaten beyond noise."""

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

START = Boundary(0.2, 0.2)


def adjustment(seed: int = 1, max_rounds: int = 60, window: int | None = 2, sign: float = 1.0, differs: bool = True):
    return FineAdjustment(START, 1.0, window, seed, max_rounds, sign, lambda *_: differs)


def play(
    fine: FineAdjustment,
    rate: Callable[[Boundary], float],
    rounds: int,
    noise: float = 0.0,
    seed: int = 0,
    first: int = 1,
) -> list[int]:
    """Rounds of ten virtual seconds whose metric grows by `rate(boundary)` a round; the trial of every round."""
    generator = random.Random(seed)
    used, level = [], 0.0
    for number in range(1, rounds + 1):
        used.append(fine.current.number)
        level += rate(fine.current.boundary)
        fine.observe(number, 10.0, level + generator.gauss(0, noise))
    return used


def test_the_first_trial_is_the_boundary_given():
    assert adjustment().current.boundary == START
    assert adjustment().current.number == 0


def test_windows_alternate_between_challengers_and_the_incumbent():
    used = play(adjustment(), lambda boundary: -abs(boundary.share - 0.2), 23)
    # The first round only gives the curve its first point.
    assert used[:11] == [0, 0, 0, 1, 1, 0, 0, 2, 2, 0, 0]


def test_a_clearly_better_boundary_takes_over_after_two_windows():
    fine = adjustment(max_rounds=200)
    play(fine, lambda boundary: 0.01 + 0.05 * boundary.share, 200, noise=0.001)
    assert fine.incumbent.number > 0
    assert fine.incumbent.boundary.share > START.share + 0.2


def test_noise_alone_rarely_takes_over():
    taken = 0
    for seed in range(20):
        fine = adjustment(seed=seed, max_rounds=30)
        play(fine, lambda boundary: 0.01, 30, noise=0.02, seed=seed)
        taken += fine.incumbent.number > 0
    assert taken <= 4


def test_a_bad_trial_costs_its_window_and_no_more():
    used = play(adjustment(max_rounds=40), lambda boundary: 0.01 if boundary == START else -0.05, 40)
    assert all(used.count(number) == 2 for number in set(used) - {0})


def test_smaller_is_better_where_the_sign_says_so():
    fine = adjustment(max_rounds=200, sign=-1.0)
    play(fine, lambda boundary: -0.01 - 0.05 * boundary.share, 200, noise=0.001)
    assert fine.incumbent.boundary.share > START.share + 0.2


def test_no_challenger_that_could_not_be_judged_any_more():
    assert play(adjustment(max_rounds=6), lambda boundary: 0.01, 6) == [0] * 6


def test_without_a_window_nothing_changes():
    assert play(adjustment(window=None), lambda boundary: 0.01, 20) == [0] * 20


def test_where_no_boundary_makes_a_difference_the_incumbent_stays():
    fine = adjustment(differs=False)
    assert play(fine, lambda boundary: 0.01, 30) == [0] * 30
    assert "no boundary nearby" in fine.reason


def test_rounds_without_evaluation_lengthen_the_window():
    fine = adjustment()
    used = []
    for number in range(1, 31):
        used.append(fine.current.number)
        fine.observe(number, 10.0, 0.01 * number if number % 3 == 0 else None)
    assert used[:13] == [0] * 6 + [1] * 3 + [0] * 3 + [used[12]]


def test_a_value_that_is_no_number_fails_the_trial_and_keeps_the_incumbent():
    fine = adjustment()
    for number in range(1, 20):
        fine.observe(number, 10.0, float("nan") if fine.current.number == 1 else 0.01 * number)
    assert fine.trials[1].state == "FAIL"
    assert fine.incumbent.number == 0


def test_a_value_of_the_incumbents_that_is_no_number_fails_nobody():
    fine = adjustment()
    for number in range(1, 30):
        fine.observe(number, 10.0, float("nan") if number == 6 else 0.01 * number)
    assert "FAIL" not in {trial.state for trial in fine.trials}
    assert fine.trials[1].state == "COMPLETE"


def test_the_winner_is_measured_before_it_is_challenged():
    fine = adjustment(max_rounds=300)
    number, level = 0, 0.0
    while fine.incumbent.number == 0 and number < 250:
        number += 1
        level += 0.01 + 0.05 * fine.current.boundary.share
        fine.observe(number, 10.0, level + 0.0001 * (number % 3))
    winner = fine.incumbent.number
    assert winner > 0
    following = []
    for _ in range(2):
        following.append(fine.current.number)
        fine.observe(number, 10.0, level)
    assert following == [winner, winner]


def test_verdicts_are_told_once():
    fine = adjustment()
    told = []
    for number in range(1, 20):
        told.append(fine.take_verdict())
        fine.observe(number, 10.0, 0.01 * number)
    assert [each["judged"] for each in told if each] == [1.0, 2.0, 3.0]
    assert all(set(each) == {"judged", "objective"} for each in told if each)


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
    level = sum(rate(broken.trials[number].boundary) for number in begun)
    for number in range(stop + 1, 31):
        begun.append(resumed.current.number)
        level += rate(resumed.current.boundary)
        resumed.observe(number, 10.0, level)
    assert begun == whole
    assert resumed.trials == unbroken.trials


def test_another_coarse_boundary_is_taken_up_while_no_trial_has_won():
    fine = adjustment()
    play(fine, lambda boundary: 0.01, 4)
    assert fine.current.number == 1
    fine.restart(Boundary(0.5, 0.0), 2.0, "times changed")
    fine.observe(4, 10.0, 100.0)  # the round that was under way had another boundary
    assert fine.state_dict()["standing"]["before"] is None
    assert fine.current.boundary == Boundary(0.5, 0.0)
    assert fine.trials[1].state == "FAIL"


def test_a_boundary_that_has_won_is_kept_whatever_the_analysis_says():
    fine = adjustment(max_rounds=200)
    play(fine, lambda boundary: 0.01 + 0.05 * boundary.share, 150, noise=0.001)
    won = fine.incumbent
    fine.restart(Boundary(0.5, 0.0), 2.0, "times changed")
    assert fine.incumbent == won


class TestStudy:
    def study(self, seed: int = 3) -> BoundaryStudy:
        study = BoundaryStudy(seed, 1.5)
        study.add(START, 0.0)
        return study

    def test_what_is_asked_lies_near_the_incumbent_or_gives_qat_to_fewer(self):
        study = self.study()
        asked = [study.ask(START, attempt) for attempt in range(30)]
        for each in asked:
            assert -1 <= each.slack <= START.slack + 0.3 * 1.5
            assert 0 <= each.share <= START.share + 0.3
        assert any(each.slack < -0.8 for each in asked)

    def test_asking_again_gives_the_same(self):
        study = self.study()
        assert study.ask(START) == study.ask(START) == self.study().ask(START)
        assert study.ask(START) != study.ask(START, attempt=1)
        assert study.ask(START) != self.study(seed=4).ask(START)

    def test_it_learns_where_objectives_are_high(self):
        study = self.study()
        for _ in range(40):
            asked = study.ask(Boundary(0.5, 0.5), 0)
            study.tell(study.add(asked, None).number, -abs(asked.share - 0.6))
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
        assert opened.best_trial.params == {"slack": 0.2, "share": 0.2}
        assert [path.name for path in tmp_path.iterdir()] == ["study.log"]

    def test_trials_travel_as_plain_values(self):
        trial = Trial(4, Boundary(0.1, 0.2), None, "RUNNING", "elsewhere")
        assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial
