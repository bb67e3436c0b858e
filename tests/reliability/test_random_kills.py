"""SIGKILL at any moment: what goes on afterwards ends with the bits and the rows of a run that nobody disturbed."""

import random
import shutil
import time
from pathlib import Path

import pytest

from .killed_programs import KINDS, killed_and_gone_on_with, undisturbed
from .small_runs import begun, check_as_undisturbed, in_a_process, run_below

KILLS = {"one process": 20, "two processes": 15, "SCAFFOLD": 20, "silos": 15}


def test_three_kills(tmp_path: Path) -> None:
    whole, chance, killed = tmp_path / "whole", random.Random(1), 0
    seconds, undisturbed_run = _killed_within(whole, None), run_below(whole)
    assert seconds is not None
    assert undisturbed_run is not None
    for number in range(20):
        root = tmp_path / str(number)
        spent = _killed_within(root, chance.uniform(0, seconds))
        if spent is not None:  # it was at its end before
            seconds = min(seconds, spent)
            continue
        run = run_below(root)
        assert run is not None
        found = in_a_process(root, None, run)
        assert (found["ended"], found["said"]) == (0, "")
        check_as_undisturbed(run, undisturbed_run)
        killed += 1
        if killed == 3:
            return
    pytest.fail(f"{killed} of 20 were killed")


def _killed_within(root: Path, seconds: float | None) -> float | None:
    """Begin a run, and kill it so many seconds after its recipe is there; the seconds of one that came to its end."""
    root.mkdir()
    process, _ = begun(root)
    while (run := run_below(root)) is None or not (run / "recipe.yaml").exists():
        assert process.is_alive()
        time.sleep(0.001)
    since = time.monotonic()
    process.join(seconds)
    process.kill()
    process.join()
    return time.monotonic() - since if process.exitcode == 0 else None


@pytest.mark.corner
@pytest.mark.parametrize("name", ["two processes", "silos"])
def test_one_kill(tmp_path: Path, name: str) -> None:
    check(tmp_path, name, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_kills(tmp_path: Path, name: str) -> None:
    check(tmp_path, name, range(100, 100 + KILLS[name]))


def check(folder: Path, name: str, seeds: range) -> None:
    kind, whole = KINDS[name], folder / "whole"
    seconds = undisturbed(kind, whole)
    ends = []
    for seed in seeds:
        root = folder / str(seed)
        ends.append(killed_and_gone_on_with(kind, root, seconds, seed))
        if ends[-1] == "resumed":
            try:
                kind.check(root, whole)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}") from error
            shutil.rmtree(root)
    print(name, len(ends), "kills:", {end: ends.count(end) for end in set(ends)})
    assert ends.count("resumed") > 0.7 * len(ends)
