"""A run that goes on with more rounds than it was begun with is the run that had them from the start."""

import json
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.callbacks import EarlyStopping, FixedAllocator, HybridAllocator
from fedhq_lightning.cli.main import main
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedOpt
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import Plan

from ..small_federation import SmallData, SmallModule, same_bits, trainer
from ..small_recipe import SMALL, write_recipe
from .runs import Recorder, checkpoint, fit, records


def without_model(**settings: Any) -> FederatedTrainer:
    there = trainer(**settings)
    there.writes_model = False
    return there


def ran(ckpt_path: Path | str | None = None, **settings: Any) -> FederatedTrainer:
    there = without_model(**settings)
    there.fit(SmallModule(), SmallData(), ckpt_path)
    return there


def killed(after: int, **settings: Any) -> FederatedTrainer:
    """A run that was interrupted once round `after` was over, but for its checkpoint."""

    def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
        if record.round == after:
            raise KeyboardInterrupt

    there = without_model(**settings | {"callbacks": [Recorder(interrupt), *settings.get("callbacks", [])]})
    with pytest.raises(KeyboardInterrupt):
        there.fit(SmallModule(), SmallData())
    return there


def same_run(one: FederatedTrainer, other: FederatedTrainer) -> None:
    mine, theirs = checkpoint(one), checkpoint(other)
    for name in ("global_state", "averaged_state", "best_state"):
        if theirs["state"][name] is not None:
            assert same_bits(mine["state"][name], theirs["state"][name]), name
    for name in ("round", "best_round", "best_value", "stopped"):
        assert mine["state"][name] == theirs["state"][name], name
    best = [load_checkpoint(RunDirectory(each.run_dir).best) for each in (one, other)]
    assert best[0]["round"] == best[1]["round"]
    assert same_bits(best[0]["state"], best[1]["state"])
    names = [[path.name for path in RunDirectory(each.run_dir).saved_checkpoints()] for each in (one, other)]
    assert names[0][-1] == names[1][-1]
    for left, right in zip(records(one), records(other), strict=True):
        assert (left.metrics, left.clients[:0], left.mode_counts) == (right.metrics, (), right.mode_counts)
        assert [client.mode for client in left.clients] == [client.mode for client in right.clients]
        assert left.total_virtual_seconds == right.total_virtual_seconds
    for name in ("rounds", "metric_fp", "metric_quantized", "best_round", "uplink_bytes", "virtual_seconds"):
        assert one.summary[name] == other.summary[name], name


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "a factor per round": lambda: {"round_lr": 0.8, "ema_decay": 0.5, "clients_per_round": 2},
    "quantized, FedAdam, fixed modes": lambda: {
        "scheme": "w4a8",
        "aggregator": FedOpt(partial(torch.optim.Adam, lr=0.05)),
        "callbacks": [FixedAllocator(0.5)],
    },
    "evaluated and saved seldom": lambda: {"eval_every_n_rounds": 2, "checkpoint_every_n_rounds": 2},
}


@pytest.mark.parametrize("make", SETTINGS.values(), ids=SETTINGS)
class TestTheSameBits:
    def test_of_a_finished_run(self, make: Callable[[], dict[str, Any]]) -> None:
        whole, short = ran(max_rounds=5, **make()), ran(max_rounds=3, **make())
        longer = ran(short.run_dir, max_rounds=5, **make())
        assert longer.run_dir == short.run_dir
        same_run(longer, whole)

    def test_of_a_stopped_run(self, make: Callable[[], dict[str, Any]]) -> None:
        def with_recorder() -> dict[str, Any]:
            own = make()
            return own | {"callbacks": [Recorder(), *own.get("callbacks", [])]}

        whole, stopped = ran(max_rounds=5, **with_recorder()), killed(3, max_rounds=4, **make())
        same_run(ran(stopped.run_dir, max_rounds=5, **with_recorder()), whole)


class TestExtending:
    @pytest.mark.corner
    def test_every_file_is_of_the_longer_run(self) -> None:
        short, _ = fit(max_rounds=1, scheme="w4a8")
        before, page = (short.run_dir / name for name in ("model/weights.safetensors", "report.html"))
        before, page = before.read_bytes(), page.read_text()
        longer, _ = fit(max_rounds=3, scheme="w4a8", ckpt_path=short.run_dir)
        folder = short.run_dir
        assert json.loads((folder / "summary.json").read_text())["rounds"] == longer.summary["rounds"] == 3
        assert (folder / "model" / "weights.safetensors").read_bytes() != before
        assert (folder / "metrics.csv").read_text().count("\n") == 5
        assert yaml.safe_load((folder / "recipe.yaml").read_text())["trainer"]["max_rounds"] == 3
        assert (folder / "recipe.yaml").read_text().startswith("# Started from Python")
        assert (folder / "report.html").read_text() != page

    def test_again_and_with_the_number_that_it_has_by_then(self) -> None:
        run = ran(max_rounds=1).run_dir
        ran(run, max_rounds=2)
        ran(run, max_rounds=2)
        same_run(ran(run, max_rounds=4), ran(max_rounds=4))

    def test_to_fewer_rounds_than_planned_but_not_than_done(self) -> None:
        stopped = killed(3, max_rounds=9, eval_every_n_rounds=2)
        assert checkpoint(stopped)["state"]["round"] == 2
        settings: dict[str, Any] = {"eval_every_n_rounds": 2, "callbacks": [Recorder()]}
        with pytest.raises(ConfigurationError, match=r"max_rounds 1: .* has done 2 rounds; give that many or more"):
            ran(stopped.run_dir, max_rounds=1, **settings)
        same_run(ran(stopped.run_dir, max_rounds=3, **settings), ran(max_rounds=3, **settings))

    def test_it_is_locked_all_the_time(self) -> None:
        short, refused = ran(max_rounds=1, callbacks=Recorder()), list[str]()

        def resume_too(there: FederatedTrainer, record: RoundRecord) -> None:
            with pytest.raises(ConfigurationError) as raised:
                ran(there.run_dir, max_rounds=3, callbacks=Recorder())
            refused.append(str(raised.value))

        ran(short.run_dir, max_rounds=2, callbacks=Recorder(resume_too))
        assert len(refused) == 1
        assert "going on in another process" in refused[0]
        ran(short.run_dir, max_rounds=3, callbacks=Recorder())

    def test_from_an_older_checkpoint_the_later_ones_are_gone(self) -> None:
        run = RunDirectory(ran(max_rounds=4).run_dir)
        older = run.saved_checkpoints()[0]
        assert older.name == "round-000003.ckpt"
        stopped_at: list[list[str]] = []

        def look(there: FederatedTrainer, record: RoundRecord) -> None:
            stopped_at.append([path.name for path in run.saved_checkpoints()])

        there = without_model(max_rounds=6)
        there.callbacks.append(Recorder(look))
        there.fit(SmallModule(), SmallData(), older)
        assert stopped_at[0] == ["round-000003.ckpt"]
        assert [path.name for path in run.saved_checkpoints()] == ["round-000005.ckpt", "round-000006.ckpt"]
        same_run(there, ran(max_rounds=6))


@pytest.mark.usefixtures("quick")
def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "small.yaml", {"trainer.round_lr": "linear"})
    assert main(["run", str(recipe), "--trainer.max_rounds=1", "--trainer.default_root_dir=my runs"]) == 0
    (run,) = (tmp_path / "my runs" / "small").iterdir()
    assert main(["resume", f"{run.relative_to(tmp_path)}/", "--trainer.max_rounds=3"]) == 0
    assert "max_rounds was 1, is now 3: from round 2 on round_lr 'linear' is that of 3" in capsys.readouterr().err
    assert yaml.safe_load((run / "recipe.yaml").read_text())["trainer"]["max_rounds"] == 3
    assert json.loads((run / "summary.json").read_text())["rounds"] == 3
    assert main(["resume", str(run), "--trainer.max_rounds=2"]) == 2
    assert "has done 3 rounds; give that many or more" in capsys.readouterr().err
    assert main(["resume", str(run / "checkpoints")]) == 0, "it has its new length by itself"
    assert json.loads((run / "summary.json").read_text())["rounds"] == 3


class LooksAhead(FixedAllocator):
    looks_at_max_rounds = True


class Own(Allocator):
    """A user's, of whom nothing is known."""

    def propose(self, round_number: int, cohort: Any) -> Plan:
        return Plan(dict.fromkeys(cohort, "fp"))


class TestWhatChangesIsTold:
    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            (
                lambda: {"round_lr": "cosine"},
                "max_rounds was 2, is now 4: from round 3 on round_lr 'cosine' is that of 4 rounds, "
                "rounds 1 to 2 stay those of 2",
            ),
            (
                lambda: {"callbacks": LooksAhead("fp"), "round_lr": "linear"},
                "max_rounds was 2, is now 4: from round 3 on round_lr 'linear' is that of 4 rounds, LooksAhead plans "
                "as in a run of 4, rounds 1 to 2 stay those of 2",
            ),
            (
                lambda: {"callbacks": EarlyStopping(patience=1, min_delta=100.0)},
                "max_rounds was 2, is now 4: a callback ended the run after round 2, as it would have with 4: "
                "it stays ended",
            ),
        ],
        ids=["cosine", "allocator", "ended by a callback"],
    )
    def test_in_one_line(self, settings: Callable[[], dict[str, Any]], told: str) -> None:
        short = ran(max_rounds=2, **settings())
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            ran(short.run_dir, max_rounds=4, **settings())
        assert told in [str(each.message) for each in heard]

    def test_an_allocator_that_does_not_say(self) -> None:
        assert Own.looks_at_max_rounds
        assert HybridAllocator.looks_at_max_rounds

    def test_hybrid_phases_are_those_of_the_longer_run(self) -> None:
        def settings() -> dict[str, Any]:
            return {
                "callbacks": HybridAllocator(fine=False, qat_from=0.5, boundary={"slack": 9.0, "share": 1.0}),
                "scheme": "w4a8",
                "fleet": "mixed",
            }

        short = ran(max_rounds=2, **settings())
        with pytest.warns(match=r"HybridAllocator plans as in a run of 6"):
            longer = ran(short.run_dir, max_rounds=6, **settings())
        counts = [record.mode_counts["qat"] for record in records(longer)]
        assert counts[3] == 0
        assert counts[4] > 0
        explanation = json.loads((short.run_dir / "allocation.json").read_text())["explanation"]
        assert "Made 6 rounds long later on. As was given, QAT begins in round 4" in explanation
        assert ran(short.run_dir, max_rounds=6, **settings()).allocator.explanation.count("Made 6") == 1

    def test_a_last_round_that_cannot_be_taken_back(self) -> None:
        short = ran(max_rounds=3, eval_every_n_rounds=2)
        for path in RunDirectory(short.run_dir).saved_checkpoints()[:-1]:
            path.unlink()
        with pytest.warns(match=r"round 3 is recorded as that of 3 rounds, for no older checkpoint is there"):
            ran(short.run_dir, max_rounds=5, eval_every_n_rounds=2)


class TestWhichRun:
    def test_last_is_the_newest(self) -> None:
        with pytest.warns(match="ckpt_path 'last': no run to go on with is in runs/smallmodule, so a new one"):
            first = ran("last", max_rounds=1)
        second = ran(max_rounds=1)
        names = sorted(path.name for path in first.run_dir.parent.iterdir())
        (first.run_dir.parent / "29990101-000000-abcdef").mkdir()
        again = ran("last", max_rounds=2)
        assert again.run_dir.name == names[-1]
        assert second.run_dir.name in names

    @pytest.mark.parametrize("word", ["best", "hpc"])
    def test_other_words_of_lightning(self, word: str) -> None:
        with pytest.raises(ConfigurationError, match=f"ckpt_path '{word}': fit goes on where a run stood"):
            ran(word)

    def test_an_edited_fleet_file_under_a_recipe(self, tmp_path: Path) -> None:
        fleet = tmp_path / "mine.yaml"
        fleet.write_text("profiles: {raspberry-pi-4: 1}\n")

        def go(ckpt_path: Path | None = None) -> FederatedTrainer:
            there, module, data = resolve("small", yaml.safe_dump(SMALL), [f"--trainer.fleet={fleet}"]).instantiate()
            there.writes_model = False
            there.fit(module, data, ckpt_path)
            return there

        run = go().run_dir
        go(run)
        fleet.write_text("profiles: {phone-snapdragon-855: 1}\n")
        with pytest.raises(ConfigurationError, match=r"virtual_fleet was 'content .*', is now 'content "):
            go(run)

    def test_a_checkpoint_elsewhere(self, tmp_path: Path) -> None:
        run = ran(max_rounds=1).run_dir
        (tmp_path / "a" / "b").mkdir(parents=True)
        copy = shutil.copy(RunDirectory(run).saved_checkpoints()[0], tmp_path / "a" / "b" / "round-000001.ckpt")
        with pytest.raises(ConfigurationError, match="lies in no run directory"):
            ran(copy, max_rounds=1)
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
