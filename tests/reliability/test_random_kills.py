"""SIGKILL at any moment: what goes on afterwards ends with the bits and the rows of a run that nobody disturbed."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from .killed_programs import KINDS, killed_and_gone_on_with, undisturbed
from .small_runs import begun, check_as_undisturbed, in_a_process, run_below

KILLS = {"one process": 20, "two processes": 15, "silos": 15}


def test_three_kills(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    process, _ = begun(whole)
    while run_below(whole) is None:
        time.sleep(0.001)
    since = time.monotonic()
    process.join()
    seconds, other, chance = time.monotonic() - since, run_below(whole), random.Random(1)
    assert other is not None
    for number in range(3):
        root = tmp_path / str(number)
        root.mkdir()
        process, _ = begun(root)
        while (run := run_below(root)) is None or not (run / "recipe.yaml").exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, seconds))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = in_a_process(root, None, run)
        assert (found["ended"], found["said"]) == (0, "")
        check_as_undisturbed(run, other)


@pytest.mark.corner
@pytest.mark.parametrize("name", ["two processes", "silos"])
def test_one_kill(tmp_path: Path, name: str) -> None:
    check(tmp_path, name, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_fifty_kills(tmp_path: Path, name: str) -> None:
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
