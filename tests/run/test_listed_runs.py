"""What is told of many runs."""

import fcntl
import json
from pathlib import Path

import pytest

from fedhq_lightning.cli.main import main
from fedhq_lightning.run.listed_runs import listed, newest_runs

from ..small_run import write_run


@pytest.fixture
def runs() -> list[Path]:
    """Done with a name, stopped at round 7, stopped before it began, damaged; the oldest first."""
    done = write_run(Path("runs/digits/20250101-120000-000001-first-try"))
    stopped = write_run(Path("runs/digits/20250102-120000-000002"))
    (stopped / "summary.json").unlink()
    (stopped / "checkpoints").mkdir()
    for number in (6, 7):
        (stopped / "checkpoints" / f"round-{number:06d}.ckpt").write_bytes(b"x" * 1000)
    early = Path("runs/mnist/20250103-120000-000003")
    early.mkdir(parents=True)
    damaged = write_run(Path("comparisons/c/runs/a-seed-0/mnist/20250104-120000-000004"))
    (damaged / "summary.json").write_text("{")
    return [done, stopped, early, damaged]


def test_newest_first_at_any_depth(runs: list[Path]) -> None:
    assert newest_runs(Path("runs")) == [runs[2], runs[1], runs[0]]
    assert newest_runs(Path("comparisons")) == [runs[3]]
    assert newest_runs(Path("nowhere")) == []


def test_what_is_told(runs: list[Path]) -> None:
    done, stopped, early, damaged = listed(runs)
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert (done.name, done.id, done.recipe, done.state) == ("first-try", "000001", "digits", "done")
    assert (done.rounds, done.max_rounds, done.began) == (12, 12, "2025-01-01T12:00:00")
    assert (done.metric_name, done.metric) == ("val_accuracy", summary["metric_quantized"])
    assert done.bytes == sum(path.stat().st_size for path in runs[0].rglob("*") if path.is_file())
    assert (stopped.state, stopped.rounds, stopped.max_rounds, stopped.metric) == ("stopped", 7, 12, None)
    assert stopped.bytes > 2000
    assert (early.state, early.rounds, early.max_rounds) == ("stopped", 0, None)
    assert damaged.state == "damaged"


def test_one_that_came_to_nothing(runs: list[Path]) -> None:
    write_run(runs[0], failure="rounds 1 to 3 had no usable update")
    assert [each.state for each in listed(runs[:1])] == ["failed"]


@pytest.mark.skipif(not Path("/proc/locks").is_file(), reason="Linux tells of locks there")
def test_a_run_that_is_going_on_is_not_disturbed(runs: list[Path]) -> None:
    with (runs[1] / "recipe.yaml").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert [each.state for each in listed(runs[:2])] == ["done", "running"]
        fcntl.flock(file, fcntl.LOCK_UN)
    assert [each.state for each in listed(runs[:2])] == ["done", "stopped"]


def test_the_table(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "recipe", "began", "state", "metric", "size"]
    assert [line.split()[0] for line in lines[1:]] == ["000003", "000002", "first-try"]
    assert "stopped 7/12" in lines[2]
    assert "val_accuracy" in lines[3]
    assert main(["runs", "--last", "1"]) == 0
    out = capsys.readouterr().out
    assert "000003" in out
    assert "2 older ones are not shown; all: --last 0" in out
    assert main(["runs", "comparisons", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["id"], found["state"], found["folder"]) == ("000004", "damaged", str(runs[3]))


def test_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 2
    assert "runs is no folder; runs are made in trainer.default_root_dir" in capsys.readouterr().err
    Path("runs").mkdir()
    assert main(["runs", "--last", "few"]) == 2
    assert "--last 'few': must be a whole number" in capsys.readouterr().err
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs\n"
