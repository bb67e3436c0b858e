"""A run that is killed right after any of its file operations goes on to the same bits, or can be removed."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .small_runs import check_as_undisturbed, in_a_process, run_below


class Undisturbed(NamedTuple):
    run: Path
    operations: Sequence[str]
    is_quick: bool

    @property
    def numbers(self) -> list[int]:
        """Of the operations, from 1; of many writes to one file in a row the first two and the last."""
        names = self.operations
        return [
            number
            for number, name in enumerate(names, start=1)
            if not (names[max(0, number - 3)] == names[max(0, number - 2)] == name == (*names, "")[number])
        ]


def undisturbed(root: Path, is_quick: bool) -> Undisturbed:
    done = in_a_process(root, is_quick=is_quick)
    assert (done["ended"], done["said"]) == (0, "")
    run = run_below(root)
    assert run is not None
    return Undisturbed(run, done["operations"], is_quick)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Without the exported program and the report."""
    return undisturbed(tmp_path_factory.mktemp("quick"), True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(tmp_path_factory.mktemp("whole"), False)


def check_killed(folder: Path, one: Undisturbed, numbers: Iterable[int], again: Sequence[int] = ()) -> dict[str, int]:
    """Kill a run after each of these operations, what goes on with it after `again`, and look at what then goes on.

    Returns:
        How many were resumed, had to be removed, and had left nothing.
    """
    counts = {"resumed": 0, "removed": 0, "nothing": 0}
    for number in numbers:
        root = folder / str(number)
        root.mkdir()
        where = f"killed after {number}: {one.operations[number - 1]}"
        assert in_a_process(root, number, is_quick=one.is_quick) == {"ended": -9}, where
        run = run_below(root)
        for last in again if run is not None else ():
            in_a_process(root, last, run, one.is_quick)
        counts[end_of(root, run, one, where)] += 1
        shutil.rmtree(root)
    return counts


def end_of(root: Path, run: Path | None, one: Undisturbed, where: str) -> str:
    if run is None:
        return "nothing"
    found: dict[str, Any] = in_a_process(root, None, run, one.is_quick)
    assert found["ended"] == 0, where
    if found["said"]:
        assert found["said"].endswith(f"it was stopped before it had begun; remove it: rm -r {run}"), where
        return "removed"
    try:
        check_as_undisturbed(run, one.run)
    except AssertionError as error:
        raise AssertionError(where) from error
    return "resumed"


def test_a_sample_of_all(quick: Undisturbed, tmp_path: Path) -> None:
    numbers = quick.numbers[3 :: len(quick.numbers) // 10]
    counts = check_killed(tmp_path, quick, numbers)
    assert counts["removed"] == 1
    assert counts["resumed"] == len(numbers) - 1 >= 9


def test_killed_again_while_it_goes_on(quick: Undisturbed, tmp_path: Path) -> None:
    middle = quick.numbers[len(quick.numbers) // 2]
    assert check_killed(tmp_path, quick, [middle], again=[2, 7])["resumed"] == 1


@pytest.mark.slow
def test_each(whole: Undisturbed, tmp_path: Path) -> None:
    counts = check_killed(tmp_path, whole, whole.numbers)
    print(len(whole.operations), counts)
    assert counts["nothing"] == 2
    assert counts["removed"] <= 12
    assert sum(counts.values()) == len(whole.numbers) > 180


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.95])
def test_each_of_what_goes_on(quick: Undisturbed, tmp_path: Path, part: float) -> None:
    first = quick.numbers[int(len(quick.numbers) * part)]
    for last in range(1, 20):
        assert check_killed(tmp_path, quick, [first], again=[last])["resumed"] == 1, f"then after {last}"
