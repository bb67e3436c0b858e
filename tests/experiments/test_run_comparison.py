"""`fedhq compare` at the terminal."""

import csv
import sys
from pathlib import Path

import pytest

from fedhq_lightning.cli.main import main
from fedhq_lightning.experiments.cells import read_cell

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


def read_lines() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("comparisons/small/cells.csv").read_text().splitlines()))


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
    lines = read_lines()
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


def test_varied_keys_are_run_as_a_grid_and_gone_on_with(recipe, capsys):
    words = ["compare", recipe, "--vary", "trainer.aggregator=FedAvg,FedProx", "--vary", "trainer.scheme=w4a8,w2a8"]
    words += ["--seeds", "0", "--drop-runs"]
    assert main([*words, "--cells", "3"]) == 0
    output = capsys.readouterr().out
    assert "4 runs of small: aggregator=FedAvg, scheme=w4a8; aggregator=FedAvg, scheme=w2a8; " in output
    assert "not run yet: aggregator=FedProx, scheme=w2a8, seed 0" in output
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "(1 of 1)" in output
    folder = Path("comparisons/small")
    assert len(list((folder / "cells").iterdir())) == 4
    lines = read_lines()
    settings = [f"aggregator={name}, scheme={scheme}" for name in ("FedAvg", "FedProx") for scheme in ("w4a8", "w2a8")]
    assert [(line["allocator"], line["setting"]) for line in lines] == [("", setting) for setting in settings]
    page = (folder / "comparison.html").read_text()
    assert "4 settings side by side" in page
    assert "<td>FedProx</td>" in page
    table = (folder / "table.md").read_text()
    assert "| setting | QAT | quantized | less baseline |" in table
    assert f"| {settings[0]} | " in table
    assert f"half a point short of what {settings[0]} of the same seed had" in table

    # A value more runs what it adds; the recipe's own allocator was used.
    words[3] = "trainer.aggregator=FedAvg,FedProx,{class_path: FedProx, init_args: {mu: 0.5}}"
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "2 runs of small" in output
    assert "aggregator=FedProx(mu=0.5), scheme=w2a8" in output
    cell = read_cell(next((folder / "cells").glob("*mu=0.5*w2a8*.json")))
    assert cell.described["class_path"].endswith("FixedAllocator")
    assert cell.described["varied"]["trainer.aggregator"]["init_args"] == {"mu": 0.5}


def test_allocators_on_every_varied_value(recipe, capsys):
    words = ["compare", recipe, "--allocators", "all-ptq", "all-qat", "--vary", "trainer.scheme=w4a8,w2a8"]
    words += ["--seeds", "0", "--drop-runs", "--baseline", "all-qat, scheme=w2a8"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "all-ptq, scheme=w4a8; all-ptq, scheme=w2a8; all-qat, scheme=w4a8; all-qat, scheme=w2a8" in output
    shares = {line["setting"]: line for line in read_lines()}
    assert shares["scheme=w4a8"]["qat_share"] == shares["scheme=w2a8"]["qat_share"] == "1.0"


def test_float32_beside_a_scheme(recipe):
    assert main(["compare", recipe, "--vary", "trainer.scheme=null,w4a8", "--seeds", "0", "--drop-runs"]) == 0
    plain, quantized = read_lines()
    assert plain["setting"] == "scheme=null"
    assert plain["metric"] == plain["metric_fp"]
    assert plain["deployed"] == plain["deployed_fp"]
    assert int(plain["uplink_bytes"]) > int(quantized["uplink_bytes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.agregator=FedAvg,FedProx"], "did you mean 'trainer.aggregator'?"),
        (["trainer.aggregator=FedAvg,FedPox"], "--vary trainer.aggregator=FedPox: trainer.aggregator"),
        (["trainer.max_rounds=1,many"], "trainer.max_rounds 'many': must be a whole number"),
        (["trainer.scheme=w4a8,w9a9"], "scheme=w9a9: trainer.scheme 'w9a9'"),
        (["trainer.aggregator=FedAvg"], "1 value, so nothing varies; give two or more"),
        (["trainer.aggregator="], "no values, so nothing varies"),
        (["trainer.aggregator"], "give a key of the recipe and its values, such as --vary trainer.aggregator="),
        (["trainer.scheme=w4a8,w4a8"], "scheme=w4a8 is given twice"),
        (["model.lr=0.1,0.10"], "lr=0.1 and lr=0.10 are the same recipe"),
        (["trainer.seed=1,2"], "seeds are given by --seeds"),
        (["trainer.monitor=val_loss,val_accuracy"], "runs would not be comparable"),
        (["trainer.devices=1,2"], "it changes nothing that is compared"),
        (["data.partitioner.seed=1,2"], "seed=1 and seed=2 are the same run: what differs is set by --seeds"),
        (["model.lr=0.1,0.2", "--vary", "model.lr=0.1,0.2"], "one is the other, or a part of it"),
        (["model.lr=[0.1,0.2]"], "1 value, so nothing varies"),
        (["model.lr=0.1],[0.2"], "no YAML"),
        (["model.lr=0.1,0.2", "--allocators", "all-ptq", "best-fixed"], "best-fixed is chosen for one recipe"),
        (["trainer.callbacks.FixedAllocator.allocation=ptq,qat", "--allocators", "all-ptq"], "are the same run"),
        (["trainer.scheme=null,w4a8", "--allocators", "all-ptq"], "trainer.scheme is not set"),
        (["model.lr=0.1,0.2", "--baseline", "lr=0.3"], "compared are lr=0.1, lr=0.2; did you mean 'lr=0."),
    ],
)
def test_what_cannot_vary_is_said_before_anything_runs(recipe, words, message, capsys):
    assert main(["compare", recipe, "--vary", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fedhq: compare small: ")
    assert message in error
    assert not list(Path().glob("comparisons/small/runs"))


def test_an_allocators_arguments_can_vary(recipe, capsys):
    words = ["--vary", "trainer.callbacks.FixedAllocator.allocation=ptq,qat", "--seeds", "0", "--drop-runs"]
    assert main(["compare", recipe, *words]) == 0
    found = read_lines()
    assert [(line["setting"], line["qat_share"]) for line in found] == [
        ("allocation=ptq", "0.0"),
        ("allocation=qat", "1.0"),
    ]
