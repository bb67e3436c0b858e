"""`fedhq compare` at the terminal."""

import csv
import sys
from pathlib import Path

import pytest

from fedhq_lightning.cli.main import main

from ..small_recipe import write_recipe
from ..trainer.conftest import make_quick

pytestmark = pytest.mark.filterwarnings("ignore:.*no training examples")


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    """`fedhq` adds the working directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The report and the exported program of each run are left out."""
    make_quick(monkeypatch)


@pytest.fixture
def recipe() -> str:
    return str(write_recipe(Path("small.yaml"), {"trainer.max_rounds": 1}))


def test_runs_shows_and_goes_on(recipe, capsys):
    words = ["compare", recipe, "--allocators", "all-ptq", "all-qat", "--seeds", "0", "1", "--drop-runs"]
    assert main([*words, "--cells", "3"]) == 0
    output = capsys.readouterr().out
    assert "all-ptq, seed 0: " in output
    assert "(3 of 3)" in output
    assert "not run yet: all-qat, seed 1" in output

    assert main([*words, "--trainer.max_rounds=1"]) == 0
    output = capsys.readouterr().out
    assert "all-qat, seed 1: " in output
    assert "(1 of 1)" in output
    assert "Deployed models: test_accuracy of the round that val_accuracy chose" in output
    assert "Quantized val_accuracy at equal virtual time" in output
    assert "half a point short of what all-qat of the same seed had" in output
    folder = Path("comparisons/small")
    lines = list(csv.DictReader((folder / "cells.csv").read_text().splitlines()))
    assert [line["allocator"] for line in lines] == ["all-ptq", "all-ptq", "all-qat", "all-qat"]
    written = {path.name for path in folder.iterdir()}
    assert {"cells", "comparison.json", "table.md", "metric-over-time.svg", "time-to-target.svg"} <= written
    assert "| all-qat | 100% |" in (folder / "table.md").read_text()

    assert main([*words, "--trainer.scheme=w2a8"]) == 2
    assert "small is the folder of another comparison" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--allocators", "hybird"], "allocator 'hybird': known are all-fp"),
        (["--allocators"], "allocators: none given"),
        (["--seeds"], "seeds: none given"),
        (["--seeds", "one"], "--seeds 'one': seeds are whole numbers"),
        (["--target", "high"], "--target 'high': must be a number"),
        (["--target", "nan"], "--target 'nan': must be a number"),
        (["--at", "-1"], "--at '-1': must be a number not below 0"),
        (["--workers", "0"], "--workers '0': must be a whole number from 1"),
        (["--baseline", "all-qta"], "did you mean 'all-qat'"),
        (["--trainer.scheme=null"], "trainer.scheme is not set"),
        (["--trainer.max_round=3"], "max_round"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(recipe, words, message, capsys):
    allocators = [] if "--allocators" in words else ["--allocators", "all-ptq", "all-qat"]
    assert main(["compare", recipe, *allocators, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fedhq: compare small: ")
    assert message in error
    assert not list(Path().glob("comparisons/small/runs"))
