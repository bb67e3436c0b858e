"""A run goes on from what is intact of it, or says in one sentence why it cannot."""

import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedOpt
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.run.checkpoint_file import load_checkpoint, to_bytes
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import SmallData, SmallModule, same_bits
from .conftest import make_quick
from .runs import checkpoint, fit, last_state, records


class Counting(RoundCallback):
    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"] + 0


class MaskedModule(SmallModule):
    """With a buffer that holds infinities, as masks do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of three rounds."""
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return fit(max_rounds=3, default_root_dir=tmp_path_factory.mktemp("runs"))[0]


@pytest.fixture
def run(done: FederatedTrainer, tmp_path: Path) -> RunDirectory:
    """A copy of it that has not ended."""
    copy = tmp_path / "20250101-000000-abcdef"
    shutil.copytree(done.run_dir, copy)
    (copy / "summary.json").unlink()
    return RunDirectory(copy)


def files(run: RunDirectory) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def refused(run: RunDirectory, *arguments: Any, **settings: Any) -> str:
    """What a resume says that changes nothing."""
    before = files(run)
    with pytest.raises(ConfigurationError) as raised:
        fit(*arguments, max_rounds=3, ckpt_path=run.path, **settings)
    assert files(run) == before
    return str(raised.value)


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a checkpoint holds, and seal it again."""
    saved = load_checkpoint(file)
    change(saved)
    file.write_bytes(to_bytes(saved))


def zeroed(data: bytearray) -> None:
    data[-3000:-2600] = bytes(400)


def flipped(data: bytearray) -> None:
    data[len(data) // 2] ^= 8


def cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


@pytest.mark.usefixtures("quick")
class TestNewestIntact:
    @pytest.mark.parametrize("damage", [zeroed, flipped, cut, bytearray.clear])
    def test_is_taken_and_the_skipped_one_named(
        self, done: FederatedTrainer, run: RunDirectory, damage: Callable[[bytearray], None]
    ) -> None:
        older, newest = run.saved_checkpoints()
        data = bytearray(newest.read_bytes())
        damage(data)
        newest.write_bytes(data)
        with pytest.warns(match=rf"{newest.name}: damaged.*: passed over, the run goes on from {older.name}$"):
            resumed, state = fit(max_rounds=3, ckpt_path=run.path)
        assert same_bits(state, last_state(done))
        assert [record.round for record in records(resumed)] == [0, 1, 2, 3]
        assert [record.metrics for record in records(resumed)] == [record.metrics for record in records(done)]
        assert len((run.path / "metrics.csv").read_text().splitlines()) == 5
        assert [path.name for path in run.saved_checkpoints()] == [older.name, newest.name]

    def test_none_is_left(self, run: RunDirectory) -> None:
        for path in run.saved_checkpoints():
            path.write_bytes(path.read_bytes()[:-1])
        newest, older = (str(path) for path in reversed(run.saved_checkpoints()))
        assert refused(run) == (
            f"{newest}: damaged: its checksum is gone; {older}: damaged: its checksum is gone; there is no other: put "
            "one back, or start a new run"
        )

    def test_one_that_is_asked_for_by_name_is_taken_or_refused(self, run: RunDirectory) -> None:
        older = run.saved_checkpoints()[0]
        older.write_bytes(older.read_bytes()[:-1])
        with pytest.raises(ConfigurationError, match=rf"{older.name}: damaged: its checksum is gone$"):
            fit(max_rounds=3, ckpt_path=older)

    def test_one_of_an_earlier_version(self, done: FederatedTrainer, run: RunDirectory) -> None:
        for path in run.saved_checkpoints():
            saved = load_checkpoint(path)
            del saved["evaluator"], saved["wall_phases"], saved["state"]["reached"], saved["state"]["has_statistics"]
            torch.save({"format_version": 1, **saved}, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, state = fit(max_rounds=4, ckpt_path=run.path)
        assert same_bits(state, fit(max_rounds=4, default_root_dir=run.path.parent)[1])


@pytest.mark.usefixtures("quick")
class TestContent:
    @pytest.mark.parametrize("name", ["net.0.weight", "net.2.bias"])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_model_that_is_no_number(self, done: Any, run: RunDirectory, name: str, value: float) -> None:
        newest = run.saved_checkpoints()[-1]
        rewrite(newest, lambda saved: saved["state"]["global_state"][name].reshape(-1)[-1:].fill_(value))
        with pytest.warns(match=rf"its global model holds values that are no numbers, in {name}: passed over"):
            _, state = fit(max_rounds=3, ckpt_path=run.path)
        assert same_bits(state, last_state(done))

    def test_what_began_as_no_number(self, tmp_path: Path) -> None:
        masked, state = fit(MaskedModule(), max_rounds=2, default_root_dir=tmp_path)
        (masked.run_dir / "summary.json").unlink()
        _, again = fit(MaskedModule(), max_rounds=2, ckpt_path=masked.run_dir)
        assert same_bits(state, again)

    @pytest.mark.parametrize("part", ["state", "aggregator", "allocator", "callbacks"])
    def test_a_part_is_missing(self, run: RunDirectory, part: str) -> None:
        for path in run.saved_checkpoints():
            rewrite(path, lambda saved: saved.pop(part))
        assert f"round-000003.ckpt: not fit to go on from: {part} is missing; " in refused(run)

    @pytest.mark.parametrize(
        ("place", "value", "said"),
        [
            (["state"], "text", "state must be values by name, not str"),
            (["allocator"], 3, "allocator must be values by name, not int"),
            (["callbacks"], {"A": 1}, "callbacks must be values by name of each callback, not dict"),
            (["evaluator"], None, "evaluator must be values by name, not NoneType"),
            (["wall_phases"], {"fit": "long"}, "wall_phases must be seconds by name, not dict"),
            (["described"], [], "described must be values by name, not list"),
            (["described", "trainer"], 1, "described.trainer must be values by name, not int"),
            (["described", "trainer", "max_rounds"], "3", "described.trainer.max_rounds must be a whole number from 0"),
            (
                ["described", "trainer", "eval_every_n_rounds"],
                0,
                "described.trainer.eval_every_n_rounds must be a whole number from 1",
            ),
            (["described", "recipe"], "x", "described.recipe must be values by name, not str"),
            (["state", "global_state"], None, "state.global_state must be tensors by name, not NoneType"),
            (["state", "global_state", "net.0.bias"], [0.0], "state.global_state must be tensors by name, not dict"),
            (["state", "averaged_state"], 1, "state.averaged_state must be tensors by name, or nothing, not int"),
            (["state", "best_state"], {1: torch.ones(1)}, "state.best_state must be tensors by name, or nothing"),
            (["state", "round"], -1, "state.round must be a whole number from 0, not int"),
            (["state", "round"], True, "state.round must be a whole number from 0, not bool"),
            (["state", "stopped"], "no", "state.stopped must be true or false, not str"),
            (["state", "reached"], torch.ones(2), "state.reached must be whole numbers in one row, not Tensor"),
            (["state", "extra"], 1, "it holds extra in state, which this version does not know"),
            (["state", "global_state", "net.0.bias"], torch.ones(1).expand(2**40), "net.0.bias is larger than what"),
        ],
    )
    def test_another_kind_of_thing(self, run: RunDirectory, place: list[str], value: Any, said: str) -> None:
        def change(saved: dict[str, Any]) -> None:
            for name in place[:-1]:
                saved = saved[name]
            saved[place[-1]] = value

        for path in run.saved_checkpoints():
            rewrite(path, change)
        assert f"round-000003.ckpt: not fit to go on from: {said}" in refused(run)

    @pytest.mark.parametrize("part", ["global_state", "best_state"])
    def test_of_another_module(self, run: RunDirectory, part: str) -> None:
        newest = run.saved_checkpoints()[-1]
        said = f"{newest}: its model is not that of this module: "
        rewrite(newest, lambda saved: saved["state"][part].update({"net.0.weight": torch.ones(16, 13)}))
        assert refused(run).startswith(f"{said}net.0.weight was (16, 13) float32, is now (16, 12) float32; resume with")
        rewrite(newest, lambda saved: saved["state"][part].pop("net.0.weight"))
        assert refused(run).startswith(f"{said}it lacks net.0.weight; resume with the module as it was")

    def test_state_that_a_class_cannot_take_up(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"aggregator": FedOpt(torch.optim.Adam), "callbacks": [Counting()]}
        there, _ = fit(max_rounds=2, default_root_dir=tmp_path, **settings)
        run = RunDirectory(there.run_dir)
        key, newest = Counting().state_key, run.saved_checkpoints()[-1]
        sound = newest.read_bytes()
        for state, said in (({}, "KeyError: 'count'"), ({"count": "x"}, "TypeError: can only concatenate")):
            rewrite(newest, lambda saved, state=state: saved["callbacks"].update({key: state}))
            with pytest.raises(ConfigurationError, match=rf"{newest.name}: Counting cannot take up .*{said}"):
                fit(max_rounds=2, ckpt_path=run.path, **settings)
        newest.write_bytes(sound)
        rewrite(newest, lambda saved: saved.update({"aggregator": {"optimizer": "text"}}))
        with pytest.raises(ConfigurationError, match=r"FedOpt cannot take up .*no state of an optimizer"):
            fit(max_rounds=2, ckpt_path=run.path, **settings)
        newest.write_bytes(sound)
        rewrite(newest, lambda saved: saved["aggregator"]["optimizer"].update({"param_groups": [{"params": [0]}]}))
        with pytest.raises(ConfigurationError, match="FedOpt: what the checkpoint holds is no state of this optimizer"):
            fit(max_rounds=3, ckpt_path=run.path, **settings)
        newest.write_bytes(sound)
        rewrite(newest, lambda saved: saved.update({"allocator": {"x": 1}}))
        with pytest.raises(ConfigurationError, match="FixedAllocator keeps no state, but the checkpoint holds x"):
            fit(max_rounds=2, ckpt_path=run.path, **settings)

    def test_a_damaged_best_is_told_where_it_is_asked_for(self, run: RunDirectory, done: FederatedTrainer) -> None:
        there, _ = fit(max_rounds=1, default_root_dir=run.path.parent)
        best = RunDirectory(there.run_dir).best
        best.write_bytes(best.read_bytes()[:-1])
        with pytest.raises(ConfigurationError, match=r"best\.ckpt: damaged: its checksum is gone$"):
            there.validate(ckpt_path="best")
        for state in ({"state_dict": {"net.0.weight": [1.0]}}, {"state": {"global_state": 3}}, {"state": "x"}, {}):
            best.write_bytes(to_bytes(state))
            with pytest.raises(ConfigurationError, match=r"best\.ckpt: holds no weights of a module; give"):
                there.validate(ckpt_path="best")
        best.write_bytes(to_bytes({"state_dict": {"net.0.weight": torch.ones(2)}}))
        with pytest.raises(
            ConfigurationError, match=r"'best': holds other weights than those of SmallModule: it lacks"
        ):
            there.validate(ckpt_path="best")


@pytest.mark.usefixtures("quick")
class TestBeforeTheFirstCheckpoint:
    def stopped(self, run: RunDirectory, rounds: int) -> None:
        """As after a kill before a checkpoint was whole."""
        for path in run.checkpoints.iterdir():
            path.unlink()
        (run.checkpoints / ".round-000000.ckpt.abcdefgh").write_bytes(b"half")
        lines = run.rounds_file.read_text().splitlines(keepends=True)
        run.rounds_file.write_text("".join(lines[:rounds]) + (lines[rounds][:40] if rounds else ""))
        (run.path / "metrics.csv").unlink()

    @pytest.mark.parametrize("rounds", [0, 1])
    def test_begins_anew_in_its_directory(self, done: FederatedTrainer, run: RunDirectory, rounds: int) -> None:
        self.stopped(run, rounds)
        resumed, state = fit(max_rounds=3, ckpt_path=run.path)
        assert resumed.run_dir == run.path
        assert same_bits(state, last_state(done))
        assert [record.round for record in records(resumed)] == [0, 1, 2, 3]
        assert checkpoint(resumed)["state"]["round"] == 3
        assert not list(run.path.rglob(".*"))

    def test_without_a_round_written(self, done: FederatedTrainer, run: RunDirectory) -> None:
        self.stopped(run, 0)
        run.rounds_file.unlink()
        assert same_bits(fit(max_rounds=3, ckpt_path=run.path)[1], last_state(done))

    def test_of_another_recipe(self, run: RunDirectory) -> None:
        self.stopped(run, 1)
        assert "resuming with another recipe: trainer.seed was 0, is now 5" in refused(run, seed=5)
        assert "resuming with another recipe: model.lr was 0.1, is now 0.5" in refused(run, SmallModule(lr=0.5))

    def test_longer(self, run: RunDirectory) -> None:
        self.stopped(run, 1)
        resumed, _ = fit(max_rounds=4, ckpt_path=run.path)
        assert len(records(resumed)) == 5
        assert "max_rounds: 4" in run.recipe.read_text()
        with pytest.raises(ConfigurationError, match=r"max_rounds 3: .* has done 4 rounds"):
            fit(max_rounds=3, ckpt_path=run.path)

    def test_rounds_whose_checkpoints_are_gone_are_not_thrown_away(self, run: RunDirectory) -> None:
        for path in run.saved_checkpoints():
            path.unlink()
        said = "nothing to resume from: its rounds are in rounds.jsonl, but its checkpoints are gone; put them back"
        assert said in refused(run)

    def test_a_failure_leaves_the_directory(self, run: RunDirectory) -> None:
        self.stopped(run, 0)

        def fails(stage: str) -> None:
            raise ConfigurationError("no")

        data = SmallData()
        data.setup = fails  # type: ignore[method-assign]
        assert refused(run, None, data) == "no"

    def test_last_finds_it(self, done: FederatedTrainer, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path / "runs" / "smallmodule" / "29990101-000000-abcdef")
        shutil.copytree(done.run_dir, run.path)
        self.stopped(run, 1)
        resumed, _ = fit(max_rounds=3, ckpt_path="last", default_root_dir=tmp_path / "runs")  # type: ignore[arg-type]
        assert resumed.run_dir == run.path
