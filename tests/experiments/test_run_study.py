"""Studies over small runs, as a user starts them."""

import csv
import json
import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from fedhq_lightning.cli.main import main
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.run_study import tune_recipe
from fedhq_lightning.federated.rounds import RoundLoop

from ..small_recipe import write_recipe
from ..support.test_quiet import Unbuffered
from ..trainer.conftest import make_quick

SEARCH = {
    "search": {
        "model.lr": {"low": 0.01, "high": 0.5, "log": True},
        "trainer.callbacks.FixedAllocator.allocation": [0.0, 0.5, "qat"],
    },
    "objectives": ["metric_quantized", "virtual_seconds"],
    "trials": 3,
}


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """A trial's report and exported program are a run's; here it is about the study."""
    make_quick(monkeypatch)


def write(path="mine.yaml", tune=SEARCH, **changes):
    write_recipe(Path(path), {key.replace("__", "."): value for key, value in changes.items()})
    with Path(path).open("a") as file:
        yaml.safe_dump({"tune": tune}, file)


def rows(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def outcome(folder):
    """What must not differ between two studies of the same seed."""
    return [{name: row[name] for name in row if name not in ("seconds", "run_dir")} for row in rows(folder)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A study that ran in one go."""
    root, shown = tmp_path_factory.mktemp("unbroken"), Unbuffered()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "stdout", shown)
        make_quick(patch)
        write()
        folder = tune_recipe("mine.yaml")
    told = [call for call in shown.calls if call.startswith("trial ")]
    assert [call.partition(" |")[0] for call in told] == ["trial 0", "trial 1", "trial 2"]
    assert all(call.endswith("\n") for call in told), "another worker may write between two calls"
    return folder


def test_leaves_trials_picture_and_recipes(unbroken):
    table = rows(unbroken)
    assert [row["state"] for row in table] == ["complete"] * 3
    # The first is the recipe as it is.
    assert (table[0]["model.lr"], table[0]["trainer.callbacks.FixedAllocator.allocation"]) == ("0.1", "0.5")
    front = sorted(int(row["trial"]) for row in table if row["on_front"] == "1")
    best = max(table, key=lambda row: float(row["metric_quantized"]))
    assert int(best["trial"]) in front
    assert sorted(path.stem for path in (unbroken / "front").iterdir()) == sorted(f"trial-{n}" for n in front)
    header = (unbroken / "best.yaml").read_text().splitlines()[0]
    assert header.startswith(f"# best: trial {best['trial']} of a study over mine: metric_quantized 0.")
    assert ElementTree.parse(unbroken / "pareto.svg").getroot().tag.endswith("svg")
    for row in table:
        note = json.loads((Path(row["run_dir"]) / "trial.json").read_text())
        assert (note["state"], note["trial"]) == ("complete", int(row["trial"]))
        summary = json.loads((Path(row["run_dir"]) / "summary.json").read_text())
        assert summary["metric_quantized"] == float(row["metric_quantized"]) == note["objectives"]["metric_quantized"]


def test_best_recipe_gives_the_same_bits(unbroken):
    assert main(["run", str(unbroken / "best.yaml")]) == 0
    [again] = Path("runs/best").iterdir()
    summary = json.loads((again / "summary.json").read_text())
    best = max(rows(unbroken), key=lambda row: float(row["metric_quantized"]))
    for name in ("metric_quantized", "virtual_seconds"):
        assert summary[name] == float(best[name])
    weights = [path / "model" / "weights.safetensors" for path in (again, Path(best["run_dir"]))]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_stopped_and_gone_on_with_is_the_same_study(unbroken, monkeypatch, capsys):
    """Ctrl-C in the second round of the second trial: it goes on from its checkpoint."""
    write()
    plan, calls = RoundLoop._plan, []

    def interrupt(self, round_number):
        calls.append(round_number)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plan(self, round_number)

    monkeypatch.setattr(RoundLoop, "_plan", interrupt)
    assert main(["tune", "mine.yaml"]) == 130
    shown = capsys.readouterr().err
    [folder] = Path("runs/mine").glob("tune-*")
    assert [row["state"] for row in rows(folder)] == ["complete", "running"]
    command = shlex.split(shown.partition("go on with: ")[2])
    assert command[:3] == ["fedhq", "tune", "mine.yaml"]
    assert main(command[1:]) == 0, capsys.readouterr().err
    assert calls == [1, 2, 1, 2, 2, 1, 2], "the second round of the second trial again, and no other"
    assert outcome(folder) == outcome(unbroken)


def test_another_recipe_or_search_is_refused(unbroken, capsys):
    write()
    lines = {
        f"tune mine.yaml --storage {unbroken} --model.hidden_sizes=[8]": "its study is of another recipe",
        f"tune mine.yaml --storage {unbroken} --search other.yaml": "its study is of another search",
    }
    changed = SEARCH | {"search": SEARCH["search"] | {"model.lr": [0.1, 0.2]}}
    Path("other.yaml").write_text(yaml.safe_dump({"tune": changed}))
    before = rows(unbroken)
    for line, words in lines.items():
        assert main(line.split()) == 2
        assert words in capsys.readouterr().err
    assert rows(unbroken) == before
    assert not Path("runs").exists(), "nothing is left of what was refused"


@pytest.mark.corner
def test_two_workers_share_the_trials(capfd):
    write(tune=SEARCH | {"objectives": "uplink_bytes", "trials": 2}, trainer__max_rounds=1)
    assert main(["tune", "mine.yaml", "--workers", "2", "--storage", "sqlite:///study.db"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    assert sorted(re.findall(r"^trial (\d) \| uplink_bytes", shown.out, re.MULTILINE)) == ["0", "1"]
    [folder] = Path("runs/mine").glob("tune-*")
    assert [row["state"] for row in rows(folder)] == ["complete"] * 2
    assert (folder / "history.svg").exists()
    assert not (folder / "front").exists()


def test_pruned_and_failed_trials_are_recorded_and_do_not_end_the_study(capsys):
    """A deadline that nobody meets is found only when a run is set up."""
    search = {
        "search": {"model.lr": [0.1, 1e-9], "trainer.round_deadline": [None, 1e-9]},
        "objectives": "metric_quantized",
        "sampler": "random",
        "seed": 14,  # the recipe itself, the deadline, the rate
        "trials": 3,
        "pruning": {"startup_trials": 1, "warmup_rounds": 0},
    }
    Path("search.yaml").write_text(yaml.safe_dump(search))
    write_recipe(Path("mine.yaml"), {"trainer.logger": True})
    assert main(["tune", "mine.yaml", "--search", "search.yaml"]) == 0, capsys.readouterr().err
    [folder] = Path("runs/mine").glob("tune-*")
    table = rows(folder)
    assert [row["state"] for row in table] == ["complete", "fail", "pruned"]
    _, failed, pruned = table
    run_dir = Path(pruned["run_dir"])
    assert pruned["model.lr"] == "1e-09"
    assert json.loads((run_dir / "trial.json").read_text())["reason"].startswith("after round 1 of 2: metric_quantized")
    assert len((run_dir / "rounds.jsonl").read_text().splitlines()) == 2, "the round that it fell in is there"
    assert not (run_dir / "summary.json").exists()
    assert failed["reason"].startswith("trainer.round_deadline 1e-09 virtual seconds: every client would be late")
    [log] = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert folder.name.encode() in log.read_bytes().replace(str(folder.absolute()).encode(), b""), "the W&B group"
    assert b'"model.lr":1e-' in log.read_bytes(), "the trial's parameters in its config"


def test_a_metric_that_is_not_a_number_fails_its_trial(capsys):
    Path("net_without_numbers.py").write_text(
        "from fedhq_lightning.models import MLP\n\n\nclass Net(MLP):\n"
        "    def validation_step(self, batch, batch_index):\n"
        "        self.log('val_accuracy', float('nan'))\n"
    )
    tune = {"search": {"model.lr": [0.1]}, "objectives": "metric_quantized", "trials": 1}
    write(tune=tune, model__class_path="net_without_numbers.Net")
    assert main(["tune", "mine.yaml"]) == 2
    assert re.search(
        r"^fedhq: recipe mine: all 1 trials failed; the first, trial 0: metric_quantized is not a finite number at the "
        r"end of the run: the run's metric is NaN",
        capsys.readouterr().err,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"search": {"model.lrr": [1]}}, "tune: search: unknown key 'model.lrr': .*did you mean 'lr'"),
        ({"search": {"trainer.scheme": ["w4a8", "w9a8"]}}, "search: trainer.scheme: the recipe refuses 'w9a8': "),
        ({"search": {"trainer.max_rounds": {"low": 0, "high": 5}}}, "search: trainer.max_rounds: the recipe refuses 0"),
        ({"search": {"model.lr": [0.1]}, "objectives": "accuracy"}, "tune: objectives: nobody logs 'accuracy'"),
        ({"search": {"model.lr": [0.1]}, "objectives": "late", "pruning": True}, "tune: pruning judges a metric"),
    ],
)
def test_refused_before_the_first_trial(tune, words):
    write(tune=tune)
    with pytest.raises(ConfigurationError, match=words):
        tune_recipe("mine.yaml")
    assert not Path("runs").exists()


def test_needs_a_search_and_one_process(capsys):
    write_recipe(Path("mine.yaml"))
    assert main(["tune", "mine.yaml"]) == 2
    assert "it has no tune section; add one" in capsys.readouterr().err
    write()
    assert main(["tune", "mine.yaml", "--trainer.devices=2"]) == 2
    assert "a trial runs in one process" in capsys.readouterr().err
    assert main(["tune", "mine.yaml", "--workers", "0"]) == 2
    assert main(["tune", "mine.yaml", "--search", "no.yaml"]) == 2
    assert "--search no.yaml: No such file" in capsys.readouterr().err


def test_the_section_is_nothing_to_other_commands(capsys):
    write()
    assert main(["show", "mine.yaml"]) == 0
    assert "tune" not in yaml.safe_load(capsys.readouterr().out)
