"""The stability benchmark: growth, what is kept, its table, and one short run."""

from pathlib import Path

import pytest
import torch
from stability import GRIDS, Cell, Kept, cells_of, growth, growth_table, initial_weight, run, run_table
from weight_grids import weight_grid

from ..trainer.conftest import make_quick


def grown(grid: str, bits: int, rounds: int = 10) -> float:
    with weight_grid(grid):
        return growth(initial_weight(0), bits, rounds)[0]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_extremes_grow_on_the_max_scale_only(bits: int) -> None:
    assert grown("max scale", bits) > 1.5
    assert grown("no search", bits) == pytest.approx(1, abs=1e-4)
    # A searched range may end beyond the largest weight, by less than half a step; then it stays.
    assert grown("search", bits) == pytest.approx(grown("search", bits, rounds=1), rel=1e-4)


def test_growth_is_relative_to_the_same_without_rounding() -> None:
    weight = initial_weight(1)
    assert weight.shape == (120, 400)
    # At 8 bits hardly anything is rounded away, whatever the noise adds up to.
    largest, norm = growth(weight, bits=8, rounds=3, clients=4, noise=2.0)
    assert largest == pytest.approx(1, abs=0.02)
    assert norm == pytest.approx(1, abs=0.02)
    assert growth(weight, 2, 3, 4, 0.1, seed=1) == growth(weight, 2, 3, 4, 0.1, seed=1)
    assert growth(weight, 2, 3, 4, 0.1, seed=1) != growth(weight, 2, 3, 4, 0.1, seed=2)


def test_growth_table() -> None:
    lines = growth_table(seeds=1, rounds=1).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [*GRIDS] * 3
    assert lines[0] == "| bits | grid | alone | ten clients |"


def test_cells() -> None:
    cells = list(cells_of(seeds=3, ablation_seeds=2, rounds=25))
    assert len(cells) == len(set(cells)) == 3 * 3 * 3 + 2 * 2
    assert {cell.mode for cell in cells if cell.grid == "max scale"} == {"fp", "qat"}


def test_runs_that_are_kept_are_found_again(tmp_path: Path) -> None:
    cell, other = Cell("w2a8", 0.05, "qat", "shipped", 0, 25), Cell("w2a8", 0.05, "qat", "shipped", 1, 25)
    path = tmp_path / "new" / "kept.jsonl"
    kept = Kept(path)
    assert cell not in kept
    assert kept.add(cell, 81.25) == 81.25
    again = Kept(path)
    assert again.get(cell) == 81.25
    assert other not in again
    again.add(other, 10.0)
    assert Kept(path).get(other) == 10.0
    nowhere = Kept(None)
    nowhere.add(cell, 1.0)
    assert nowhere.get(cell) == 1.0


def test_run_table() -> None:
    cells = [
        Cell("w3a8", 0.05, "fp", "shipped", 0, 25),
        Cell("w3a8", 0.05, "fp", "shipped", 1, 25),
        Cell("w3a8", 0.05, "ptq", "shipped", 0, 25),
        Cell("w3a8", 0.05, "qat", "shipped", 0, 25),
        Cell("w2a8", 0.1, "qat", "max scale", 0, 25),
    ]
    lines = run_table(dict(zip(cells, [90.0, 80.0, 91.0, 92.0, 10.0], strict=True))).splitlines()
    assert lines[2:] == [
        "| shipped | w3a8 | 0.05 | 85.0 [90.0, 80.0] | 91.0 [91.0] | 92.0 [92.0] |",
        "| max scale | w2a8 | 0.1 |  |  | 10.0 [10.0] |",
    ]


# The smallest clients of a skewed partition are left out with a warning.
@pytest.mark.corner
@pytest.mark.filterwarnings("ignore:.*no training examples")
def test_a_run_gives_percent_of_the_last_round_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)
    cell = Cell("w4a8", 0.3, "ptq", "shipped", seed=3, rounds=1)
    accuracy = run(cell)
    assert 0 < accuracy <= 100
    torch.manual_seed(99)
    assert run(cell) == accuracy
