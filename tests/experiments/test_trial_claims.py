"""Which worker gets which trial, with nothing run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from fedhq_lightning.experiments.objectives import Objective
from fedhq_lightning.experiments.study_storage import default_place, join, load
from fedhq_lightning.experiments.trial_claims import Claims

SPACE = {"x": FloatDistribution(0, 1)}
OBJECTIVES = (Objective("metric_fp", "max"), Objective("late", "min"))


def sampler(number):
    return optuna.samplers.TPESampler(seed=number, n_startup_trials=2)


@pytest.fixture
def place(tmp_path):
    return join(default_place(tmp_path, "mine", None), {"recipe": 1}, OBJECTIVES)[1]


def claims(place, trials=3) -> Claims:
    return Claims(load(place), place.storage, place.folder, trials, sampler)


def test_a_trial_has_one_worker_and_there_are_so_many(place):
    first, second = claims(place), claims(place)
    with first.alive(), second.alive():
        assert [each.next(SPACE).number for each in (first, second, first)] == [0, 1, 2]
        assert second.next(SPACE) is None
    third = claims(place)
    with third.alive():
        assert [third.next(SPACE).number for _ in range(3)] == [0, 1, 2], "their workers are gone"


def test_what_a_worker_left_is_taken_up_with_its_values(place):
    first = claims(place)
    with first.alive():
        values = first.next(SPACE).params
    for _ in range(5):  # stopped by the user: as often as they like
        again = claims(place)
        with again.alive():
            trial = again.next(SPACE)
            assert (trial.number, trial.params) == (0, values)
            again.was_interrupted(trial)


CHILD = """
import os, signal, sys
from tests.experiments.test_trial_claims import SPACE, claims
from fedhq_lightning.experiments.study_storage import StudyPlace
from pathlib import Path
mine = claims(StudyPlace(sys.argv[1], Path(sys.argv[2])))
with mine.alive():
    assert mine.next(SPACE).number == 0
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_trial_that_kills_its_workers_is_given_up(place):
    for start in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, place.storage, str(place.folder)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout.readline() == b"claimed\n"
        if start == 0:
            other = claims(place)
            with other.alive():
                assert other.next(SPACE).number == 1, "the first is held as long as its worker lives"
                load(place).tell(1, [0.5, 0.0])
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    last = claims(place)
    with last.alive():
        assert last.next(SPACE).number == 2
    trial = load(place).trials[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "its worker was killed 3 times while it ran"


def test_random_numbers_depend_on_the_number_alone(place, tmp_path):
    """One worker or several, at once or after a stop: the same trials, as long as the values come in the same order."""

    def values(place, workers):
        found = []
        for number in range(5):
            mine = claims(place, 5) if number % workers == 0 else mine  # noqa: F821
            with mine.alive():
                trial = mine.next(SPACE)
                load(place).tell(trial.number, [trial.params["x"], 0.0])
                found.append(trial.params["x"])
        return found

    other = join(default_place(tmp_path, "other", None), {"recipe": 1}, OBJECTIVES)[1]
    assert values(place, 5) == values(other, 1)
