"""Whole runs: what they compute, that they compute it again bit for bit, and what they leave behind."""

import copy
import csv
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedhq_lightning import cli
from fedhq_lightning.allocation import Allocator
from fedhq_lightning.callbacks import EarlyStopping, FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import completion, deployment
from fedhq_lightning.federated.aggregators import FedAvg, FedOpt, FedProx
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.federated.records import ClientRecord, RoundRecord
from fedhq_lightning.federated.run_directory import RunDirectory, load_checkpoint
from fedhq_lightning.federated.seeds import derive_seed, seed_generators
from fedhq_lightning.quantize import ExportError, QuantScheme
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import Plan, StateDict

from .beside_lightning import lightning_fit
from .small_federation import NUM_FEATURES, SmallData, SmallModule, same_bits, trainer


def fit(
    module: L.LightningModule | None = None, data: Any = None, ckpt_path: Path | None = None, **settings: Any
) -> tuple[FederatedTrainer, StateDict]:
    """A run of small things; the trainer and the last round's global model."""
    there = trainer(**settings)
    there.fit(module or SmallModule(), data or SmallData(), ckpt_path)
    return there, last_state(there)


def checkpoint(there: FederatedTrainer) -> dict[str, Any]:
    return load_checkpoint(RunDirectory.of_checkpoint(there.run_dir)[1])


def last_state(there: FederatedTrainer) -> StateDict:
    state: StateDict = checkpoint(there)["state"]["global_state"]
    return state


def records(there: FederatedTrainer) -> list[RoundRecord]:
    return RunDirectory(there.run_dir).read_rounds()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the two parts that take longest, where a test is about something else."""

    def left_out(*arguments: Any) -> None:
        raise ExportError("left out")

    monkeypatch.setattr(deployment, "export_program", left_out)
    monkeypatch.setattr(completion, "write_report", lambda path: None)


class Recorder(RoundCallback):
    """Keeps what it is told, and runs something at the end of a round."""

    def __init__(self, at_round_end: Callable[[FederatedTrainer, RoundRecord], None] | None = None) -> None:
        self.calls: list[str] = []
        self.at_round_end = at_round_end

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self.calls.append("fit start")

    def on_round_start(self, trainer: FederatedTrainer, round_number: int, plan: Plan) -> None:
        self.calls.append(f"round {round_number} start {sorted(plan.modes)}")

    def on_client_end(self, trainer: FederatedTrainer, record: ClientRecord) -> None:
        self.calls.append(f"client {record.client_id}")

    def on_round_end(self, trainer: FederatedTrainer, record: RoundRecord) -> None:
        self.calls.append(f"round {record.round} end")
        if self.at_round_end is not None:
            self.at_round_end(trainer, record)

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        self.calls.append(f"fit end {sorted(trainer.summary)[0]}")

    def on_exception(self, trainer: FederatedTrainer, error: BaseException) -> None:
        self.calls.append(f"exception {type(error).__name__}")


@pytest.mark.usefixtures("quick")
class TestOneClient:
    """With one client, fp and uplink weights, federated training is local training."""

    def test_a_round_is_a_local_fit_written_by_hand(self) -> None:
        data = SmallData({"only": 21})
        _, state = fit(data=data, max_rounds=1, local_epochs=3, seed=11)

        module = SmallModule()
        optimizer = module.configure_optimizers()
        seed_generators(derive_seed(11, "fit", 1, "only"))
        loader = data.train_dataloader("only")
        for _ in range(3):
            for inputs, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(inputs), labels).backward()
                optimizer.step()
        assert same_bits(state, {name: value.detach() for name, value in module.state_dict().items()})

    def test_a_round_is_a_fit_of_lightnings_trainer(self) -> None:
        data = SmallData((21,))
        _, state = fit(data=data, max_rounds=1, local_epochs=2, gradient_clip_val=0.1, accumulate_grad_batches=2)
        module = SmallModule()

        class SeedsAtStart(L.Callback):
            def on_train_start(self, *arguments: Any) -> None:
                seed_generators(derive_seed(0, "fit", 1, 0))

        # Lightning draws the first epoch's order before any hook: a loader that is seeded when it is first asked.
        class Loader(DataLoader[Any]):
            asked = False

            def __iter__(self) -> Any:
                if not Loader.asked:
                    seed_generators(derive_seed(0, "fit", 1, 0))
                Loader.asked = True
                return super().__iter__()

        loader = Loader(data.dataset(0), 8, shuffle=True)
        lightning_fit(module, loader, max_epochs=2, gradient_clip_val=0.1, accumulate_grad_batches=2)
        assert same_bits(state, {name: value.detach() for name, value in module.state_dict().items()})

    def test_fedprox_without_its_term_is_fedavg(self) -> None:
        states = [fit(aggregator=each)[1] for each in (FedAvg(), FedProx(mu=0.0), FedProx(mu=0.5))]
        assert same_bits(states[0], states[1])
        assert not same_bits(states[0], states[2])


@pytest.mark.usefixtures("quick")
class TestDeterminism:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"scheme": "w4a8", "callbacks": FixedAllocator(0.5), "clients_per_round": 3, "fleet": "mixed"},
            {"scheme": "w3a8", "callbacks": FixedAllocator("ptq"), "uplink": "delta", "precision": "bf16-mixed"},
        ],
        ids=["fp", "hybrid", "delta in bf16"],
    )
    def test_the_seed_decides_every_bit(self, settings: dict[str, Any]) -> None:
        (first, one), (_, two) = fit(seed=3, **settings), fit(seed=3, **settings)
        assert same_bits(one, two)
        assert not same_bits(one, fit(seed=4, **settings)[1])
        assert not same_bits(one, SmallModule().state_dict())
        assert first.summary["seed"] == 3

    def test_global_random_numbers_do_not_matter(self) -> None:
        torch.manual_seed(1)
        one = fit()[1]
        torch.manual_seed(2)
        assert same_bits(one, fit()[1])

    def test_the_same_trainer_may_fit_again(self) -> None:
        there = trainer(aggregator=FedOpt(partial(torch.optim.SGD, lr=0.5, momentum=0.9)))
        states = []
        for _ in range(2):
            there.fit(SmallModule(), SmallData())
            states.append(last_state(there))
        assert same_bits(*states)

    def test_the_same_trainer_may_fit_another_module(self) -> None:
        class Other(SmallModule):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("another_accuracy", self(batch[0]).mean())

        there = trainer(max_rounds=1)
        there.fit(SmallModule(), SmallData())
        assert (there.summary["metric_name"], there.monitor_mode) == ("val_loss", "min")
        there.fit(Other(), SmallData())
        assert (there.summary["metric_name"], there.monitor_mode) == ("another_accuracy", "max")

    def test_clients_leave_nothing_behind_for_the_next(self) -> None:
        """Otherwise bits would depend on which client trained before on the same process."""

        class Remembers(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("seen", torch.zeros(()), persistent=False)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                self.seen += 1
                return super().training_step(batch, batch_idx) * self.seen

        together = fit(Remembers(), SmallData({"a": 20, "b": 20}), max_rounds=1, uplink="delta")[0]
        losses = {each.client_id: each.metrics["train_loss"] for each in records(together)[1].clients}
        alone = fit(Remembers(), SmallData({"b": 20}), max_rounds=1)[0]
        assert losses.keys() == {"a", "b"}
        steps = [each.num_steps for each in records(together)[1].clients]
        assert steps == [3, 3]
        assert alone.summary["rounds"] == 1
        seen: list[float] = []

        class Notes(Remembers):
            def on_train_start(self) -> None:
                seen.append(self.seen.item())

        fit(Notes(), max_rounds=2)
        assert set(seen) == {0.0}


RESUMABLE: dict[str, Any] = {
    "max_rounds": 4,
    "clients_per_round": 3,
    "scheme": "w4a8",
    "uplink": "delta",
    "ema_decay": 0.5,
    "round_lr": "cosine",
}


@pytest.mark.usefixtures("quick")
class TestResume:
    def broken_and_resumed(self, after: int, make: Callable[[], dict[str, Any]]) -> tuple[Any, Any]:
        """An unbroken run, and one that was interrupted at the end of round `after` and went on."""

        def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
            if record.round == after:
                raise KeyboardInterrupt

        def settings(callback: RoundCallback) -> dict[str, Any]:
            own = make()
            return RESUMABLE | own | {"callbacks": [callback, *own.get("callbacks", [])]}

        unbroken, _ = fit(**settings(Recorder()))
        broken = trainer(**settings(Recorder(interrupt)))
        with pytest.raises(KeyboardInterrupt):
            broken.fit(SmallModule(), SmallData())
        resumed, _ = fit(ckpt_path=broken.run_dir, **settings(Recorder()))
        assert resumed.run_dir == broken.run_dir
        return unbroken, resumed

    @pytest.mark.parametrize("after", [1, 3, 4])
    @pytest.mark.parametrize(
        "make",
        [
            lambda: {"aggregator": FedOpt(partial(torch.optim.Adam, lr=0.05)), "callbacks": [FixedAllocator(0.5)]},
            lambda: {"aggregator": FedOpt(partial(torch.optim.SGD, lr=1.0, momentum=0.9)), "scheme": None},
            lambda: {"aggregator": FedProx(0.1), "callbacks": [FixedAllocator("qat")], "downlink": "scheme"},
        ],
        ids=["FedAdam", "FedAvgM", "FedProx"],
    )
    def test_goes_on_as_if_nothing_had_happened(self, after: int, make: Callable[[], dict[str, Any]]) -> None:
        unbroken, resumed = self.broken_and_resumed(after, make)
        one, two = checkpoint(unbroken)["state"], checkpoint(resumed)["state"]
        for name in ("global_state", "averaged_state", "best_state"):
            assert same_bits(one[name], two[name]), name
        assert one["best_round"] == two["best_round"]
        assert [record.round for record in records(resumed)] == [0, 1, 2, 3, 4]
        for mine, other in zip(records(resumed), records(unbroken), strict=True):
            assert mine.metrics == other.metrics
            assert mine.mode_counts == other.mode_counts
            assert mine.total_virtual_seconds == other.total_virtual_seconds
        for name in ("metric_fp", "metric_quantized", "uplink_bytes", "virtual_seconds", "mode_counts", "worst_client"):
            assert resumed.summary[name] == unbroken.summary[name]
        assert (resumed.run_dir / "model" / "weights.safetensors").read_bytes() == (
            unbroken.run_dir / "model" / "weights.safetensors"
        ).read_bytes()
        rows = list(csv.DictReader((resumed.run_dir / "metrics.csv").read_text().splitlines()))
        assert [row["round"] for row in rows] == ["0", "1", "2", "3", "4"]

    def test_from_an_older_checkpoint(self) -> None:
        unbroken, state = fit(max_rounds=3)
        other = unbroken.run_dir.with_name("copy")
        shutil.copytree(unbroken.run_dir, other)
        (other / "summary.json").unlink()
        older = RunDirectory(other).saved_checkpoints()[0]
        assert older.name == "round-000002.ckpt"
        resumed, again = fit(max_rounds=3, ckpt_path=older)
        assert same_bits(state, again)
        assert [record.round for record in records(resumed)] == [0, 1, 2, 3]
        assert (other / "summary.json").exists()

    def test_a_finished_run_is_only_completed(self) -> None:
        done, state = fit(max_rounds=2)
        before = (done.run_dir / "rounds.jsonl").read_text()
        (done.run_dir / "summary.json").unlink()
        resumed, again = fit(max_rounds=2, ckpt_path=done.run_dir)
        assert same_bits(state, again)
        assert (done.run_dir / "rounds.jsonl").read_text() == before
        assert json.loads((done.run_dir / "summary.json").read_text()) == resumed.summary

    def test_callbacks_take_up_their_state(self) -> None:
        def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
            if record.round == 2:
                raise KeyboardInterrupt

        stopping = EarlyStopping(patience=3, min_delta=100.0)
        broken = trainer(max_rounds=9, callbacks=[stopping, Recorder(interrupt)])
        with pytest.raises(KeyboardInterrupt):
            broken.fit(SmallModule(), SmallData())
        again = EarlyStopping(patience=3, min_delta=100.0)
        resumed, _ = fit(max_rounds=9, callbacks=[again, Recorder()], ckpt_path=broken.run_dir)
        assert again.best == records(resumed)[0].monitored
        assert resumed.summary["rounds"] == 3
        once_more = EarlyStopping(patience=3, min_delta=100.0)
        finished, _ = fit(max_rounds=9, callbacks=[once_more, Recorder()], ckpt_path=broken.run_dir)
        assert finished.summary["rounds"] == 3, "a run that was stopped stays stopped"

    def test_another_recipe_is_refused_and_nothing_written(self) -> None:
        done, _ = fit()
        before = sorted(path.name for path in done.run_dir.parent.iterdir())
        others: list[tuple[dict[str, Any], str]] = [
            ({"seed": 5}, "trainer.seed was 0, is now 5"),
            ({"scheme": "w4a8"}, "trainer.scheme was None, is now 'w4a8'"),
            ({"module": SmallModule(lr=0.5)}, "model.lr was 0.1, is now 0.5"),
            ({"data": SmallData(batch_size=4)}, "data.batch_size was 8, is now 4"),
        ]
        for settings, message in others:
            with pytest.raises(ConfigurationError, match=message):
                fit(ckpt_path=done.run_dir, **settings)
        assert sorted(path.name for path in done.run_dir.parent.iterdir()) == before

    def test_what_changes_no_bit_may_change(self, tmp_path: Path) -> None:
        done, _ = fit()
        fit(ckpt_path=done.run_dir, checkpoint_every_n_rounds=2, default_root_dir=tmp_path / "other")

    def test_the_best_checkpoint_is_no_run(self) -> None:
        done, _ = fit()
        with pytest.raises(ConfigurationError, match=r"best\.ckpt.*give a run directory"):
            fit(ckpt_path=done.run_dir / "checkpoints" / "best.ckpt")

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="nothing to resume from"):
            fit(ckpt_path=tmp_path / "nowhere")


SMOKE = ["digits-smoke", "--trainer.logger=false", "--trainer.max_rounds=4", "--trainer.enable_progress_bar=false"]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedhq_lightning.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"MASTER_PORT": free_port(), "MASTER_ADDR": "127.0.0.1"},
        start_new_session=True,
    )


def run_here(*arguments: str) -> None:
    """The same command in this process, which has everything imported."""
    with warnings.catch_warnings():
        assert cli.main(arguments) == 0


def only_run(root: Path) -> Path:
    (run,) = root.glob("*/*/")
    return run


class TestProcesses:
    """The smoke recipe on one process, on two, and killed: bitwise the same model."""

    @pytest.fixture(scope="class")
    @staticmethod
    def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        root = tmp_path_factory.mktemp("processes")
        roots = {name: root / name for name in ("one", "two", "killed")}
        killed = start("run", *SMOKE, f"--trainer.default_root_dir={roots['killed']}")
        try:
            while not any(file.read_text().count("\n") >= 3 for file in roots["killed"].glob("*/*/rounds.jsonl")):
                assert killed.poll() is None, killed.communicate()[0]
                time.sleep(0.002)
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
            killed.communicate()
        assert not list(roots["killed"].glob("*/*/summary.json")), "it was killed too late"
        run_here("resume", str(only_run(roots["killed"])))
        run_here("run", *SMOKE, f"--trainer.default_root_dir={roots['one']}")
        two = start("run", *SMOKE, "--trainer.devices=2", f"--trainer.default_root_dir={roots['two']}")
        output, _ = two.communicate(timeout=120)
        assert two.returncode == 0, output
        return {name: only_run(each) for name, each in roots.items()}

    @pytest.mark.parametrize("name", ["two", "killed"])
    def test_are_bitwise_alike(self, runs: dict[str, Path], name: str) -> None:
        weights = [(runs[each] / "model" / "weights.safetensors").read_bytes() for each in ("one", name)]
        assert weights[0] == weights[1]
        states = [load_checkpoint(RunDirectory.of_checkpoint(runs[each])[1])["state"] for each in ("one", name)]
        assert same_bits(states[0]["global_state"], states[1]["global_state"])

    @pytest.mark.parametrize("name", ["two", "killed"])
    def test_report_the_same(self, runs: dict[str, Path], name: str) -> None:
        one, other = RunDirectory(runs["one"]).read_rounds(), RunDirectory(runs[name]).read_rounds()
        assert [record.round for record in other] == [0, 1, 2, 3, 4]
        for mine, theirs in zip(one, other, strict=True):
            assert mine.metrics == theirs.metrics
            assert [client.client_id for client in mine.clients] == [client.client_id for client in theirs.clients]
            assert [client.metrics for client in mine.clients] == [client.metrics for client in theirs.clients]
            assert mine.total_virtual_seconds == theirs.total_virtual_seconds
            assert mine.uplink_bytes == theirs.uplink_bytes
        summaries = [json.loads((runs[each] / "summary.json").read_text()) for each in ("one", name)]
        for key in ("metric_fp", "metric_quantized", "best_round", "mode_counts", "worst_client", "export"):
            assert summaries[0][key] == summaries[1][key]

    def test_the_deployed_model_needs_torch_alone(self, runs: dict[str, Path], tmp_path: Path) -> None:
        """A fresh interpreter without our packages computes `metric_quantized` from `model.pt2`."""
        from fedhq_lightning.data import Digits

        data = Digits()
        data.prepare_data()
        data.setup("fit")
        batches = [list(batch) for batch in data.val_dataloader()]
        torch.save(batches, tmp_path / "batches.pt")
        code = f"""
import sys, torch
model = torch.export.load({str(runs["one"] / "model" / "model.pt2")!r}).module()
right = total = 0
for images, labels in torch.load({str(tmp_path / "batches.pt")!r}):
    right += (model(images).argmax(1) == labels).sum().item()
    total += len(labels)
    assert torch.equal(model(images[:1]), model(images)[:1])
assert not [name for name in sys.modules if name.split(".")[0] in ("fedhq_lightning", "torchao", "lightning")]
print(right / total)
"""
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        summary = json.loads((runs["one"] / "summary.json").read_text())
        assert summary["metric_name"] == "val_accuracy"
        assert float(out) == pytest.approx(summary["metric_quantized"], abs=1e-7)


SUMMARY_KEYS = {
    *("recipe", "run_dir", "rounds", "best_round", "metric_name", "metric_fp", "metric_quantized", "scheme"),
    *("wall_seconds", "fit_wall_seconds", "virtual_seconds", "allocator_seconds", "uplink_bytes", "downlink_bytes"),
    *("mode_counts", "quarantined", "late", "worst_client", "tiers", "export", "export_reason", "seed", "versions"),
}


class TestRunDirectory:
    @pytest.fixture(scope="class")
    @staticmethod
    def done(tmp_path_factory: pytest.TempPathFactory) -> FederatedTrainer:
        root = tmp_path_factory.mktemp("runs")
        return fit(default_root_dir=root, max_rounds=3, scheme="w4a8", callbacks=FixedAllocator(0.5), fleet="mixed")[0]

    def test_holds_all_files(self, done: FederatedTrainer) -> None:
        found = {str(path.relative_to(done.run_dir)) for path in done.run_dir.rglob("*") if path.is_file()}
        assert found >= {
            "recipe.yaml",
            "metrics.csv",
            "rounds.jsonl",
            "clients.parquet",
            "summary.json",
            "report.html",
            "checkpoints/best.ckpt",
            "checkpoints/round-000002.ckpt",
            "checkpoints/round-000003.ckpt",
            "model/model.pt2",
            "model/weights.safetensors",
            "model/README.md",
        }
        assert not [name for name in found if "/." in name or name.startswith(".")], "temporary files are left"
        assert done.run_dir.parent == done.default_root_dir / "smallmodule"

    def test_summary_has_every_key(self, done: FederatedTrainer) -> None:
        assert json.loads((done.run_dir / "summary.json").read_text()) == done.summary
        assert done.summary.keys() >= SUMMARY_KEYS
        assert done.summary["scheme"] == "w4a8"
        assert done.summary["export"] == "model.pt2"
        assert done.summary["run_dir"] == done.run_dir.name
        assert done.summary["mode_counts"] == {"fp": 0, "ptq": 6, "qat": 6}
        assert done.summary["versions"]["torch"] == torch.__version__

    def test_summary_adds_up_the_rounds(self, done: FederatedTrainer) -> None:
        rounds = records(done)
        assert done.summary["rounds"] == 3
        assert done.summary["virtual_seconds"] == rounds[-1].total_virtual_seconds
        assert done.summary["virtual_seconds"] == pytest.approx(sum(each.virtual_seconds for each in rounds))
        assert done.summary["uplink_bytes"] == sum(c.uplink_bytes for each in rounds for c in each.clients)
        assert done.summary["downlink_bytes"] == sum(c.downlink_bytes for each in rounds for c in each.clients)
        for record in rounds[1:]:
            assert record.virtual_seconds == max(client.virtual_seconds for client in record.clients)
            assert record.wall_seconds >= record.fit_wall_seconds > 0

    def test_the_best_round_is_deployed(self, done: FederatedTrainer) -> None:
        rounds = records(done)
        best = min(rounds[1:], key=lambda each: each.monitored or math.inf)
        assert done.summary["best_round"] == best.round
        assert done.summary["metric_fp"] == best.metric_fp
        assert done.summary["metric_quantized"] == pytest.approx(best.metric_quantized)
        weights = load_file(done.run_dir / "model" / "weights.safetensors")
        assert same_bits(weights, load_checkpoint(done.run_dir / "checkpoints" / "best.ckpt")["state"])

    def test_clients_have_a_row_each(self, done: FederatedTrainer) -> None:
        rows = pyarrow.parquet.read_table(done.run_dir / "clients.parquet").to_pylist()
        assert len(rows) == 12
        assert {row["mode"] for row in rows} == {"ptq", "qat"}
        assert [row["num_steps"] for row in rows[:4]] == [3, 2, 1, 4]

    def test_readme_of_the_model_runs_as_it_stands(self, done: FederatedTrainer) -> None:
        text = (done.run_dir / "model" / "README.md").read_text()
        code = "import torch\ninputs = torch.zeros(5, 12)\n" + text.split("```python\n")[1].split("```")[0]
        code += "\nassert outputs.shape == (5, 3)\n"
        subprocess.run([sys.executable, "-c", code], cwd=done.run_dir / "model", check=True)

    def test_worst_client_is_one_of_them(self, done: FederatedTrainer) -> None:
        worst = done.summary["worst_client"]
        assert worst["client_id"] in (0, 1, 2, 3)
        assert worst["clients_evaluated"] == 4
        assert math.isfinite(worst["metric"])


def test_without_a_scheme_the_float_model_is_deployed() -> None:
    module = SmallModule()
    done, _ = fit(module)
    assert (done.summary["scheme"], done.summary["export"], done.summary["metric_quantized"]) == (None, "float32", None)
    assert {path.name for path in (done.run_dir / "model").iterdir()} == {"weights.safetensors", "README.md"}
    assert same_bits(load_file(done.run_dir / "model" / "weights.safetensors"), module.state_dict())
    assert not [name for record in records(done) for name in record.metrics if name.startswith("quantized/")]


@pytest.mark.usefixtures("quick")
class TestModules:
    def test_the_users_module_gets_the_weights_and_nothing_else(self) -> None:
        module = SmallModule()
        names, kind = set(vars(module)), dict(vars(SmallModule))
        before = copy.deepcopy(module.state_dict())
        done, _ = fit(module, scheme="w4a8", callbacks=FixedAllocator("qat"))
        assert set(vars(module)) == names
        assert dict(vars(SmallModule)) == kind
        assert module._trainer is None
        assert module.training
        assert type(module.net[0]) is nn.Linear
        assert all(parameter.grad is None for parameter in module.parameters())
        assert same_bits(module.state_dict(), load_file(done.run_dir / "model" / "weights.safetensors"))
        assert not same_bits(module.state_dict(), before)

    def test_a_module_of_lightnings_trainer_may_go_on_here(self) -> None:
        module = SmallModule()
        lightning_fit(module, SmallData().train_dataloader(0))
        fit(module, max_rounds=1)

    def test_without_validation_step(self) -> None:
        class TrainsOnly(SmallModule):
            validation_step = L.LightningModule.validation_step

        done, _ = fit(TrainsOnly(), scheme="w4a8", callbacks=FixedAllocator("ptq"))
        assert done.summary["metric_name"] == "train_loss"
        assert done.summary["metric_fp"] == min(each.metrics["train/train_loss"] for each in records(done)[1:])
        assert done.summary["metric_quantized"] is None
        assert done.summary["worst_client"] is None
        assert done.summary["export"] == "packed"
        assert "example_input_array" in done.summary["export_reason"]

    def test_nothing_logged(self) -> None:
        class Silent(SmallModule):
            validation_step = L.LightningModule.validation_step

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return nn.functional.cross_entropy(self(batch[0]), batch[1])

        done, _ = fit(Silent())
        assert (done.summary["metric_name"], done.summary["metric_fp"], done.summary["best_round"]) == (
            None,
            None,
            None,
        )
        assert same_bits(load_file(done.run_dir / "model" / "weights.safetensors"), last_state(done))

    def test_batch_norm_statistics_are_averaged_and_counts_stay(self) -> None:
        class Normed(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.net.insert(1, nn.BatchNorm1d(16))

        data = SmallData((16, 48))
        module = Normed()
        _, state = fit(module, data, max_rounds=1)
        assert state["net.1.num_batches_tracked"].item() == 0
        means = []
        for client_id in data.client_ids:
            alone = SmallData({client_id: data.sizes[client_id]})
            alone.dataset = data.dataset  # type: ignore[method-assign]  # the same examples
            means.append(fit(Normed(), alone, max_rounds=1)[1]["net.1.running_mean"])
        torch.testing.assert_close(state["net.1.running_mean"], (16 * means[0] + 48 * means[1]) / 64)
        fit(Normed(), data, scheme="w4a8", callbacks=FixedAllocator(0.5))

    def test_tied_weights_stay_tied(self) -> None:
        class Tied(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
                self.net[2].weight = self.net[0].weight

        for settings in ({}, {"scheme": "w4a8", "callbacks": FixedAllocator("qat")}):
            module = Tied()
            _, state = fit(module, **settings)
            assert module.net[0].weight is module.net[2].weight
            assert same_bits({"w": state["net.0.weight"]}, {"w": state["net.2.weight"]})

    def test_layers_built_in_setup_and_configure_model(self) -> None:
        class Late(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential()
                self.order: list[str] = []

            def setup(self, stage: str) -> None:
                self.order.append("setup")
                torch.manual_seed(0)
                self.width = 16

            def configure_model(self) -> None:
                if len(self.net):
                    return
                assert self.order == ["setup"], "Lightning calls setup first"
                self.net = nn.Sequential(nn.Linear(NUM_FEATURES, self.width), nn.ReLU(), nn.Linear(self.width, 3))

        module = Late()
        done, _ = fit(module)
        assert same_bits(module.state_dict(), load_file(done.run_dir / "model" / "weights.safetensors"))

    def test_setup_may_look_at_the_trainer(self) -> None:
        class Looks(SmallModule):
            def setup(self, stage: str) -> None:
                assert stage == "fit"
                assert self.trainer.max_epochs == 3

        fit(Looks(), max_rounds=1, local_epochs=3)

    def test_lazy_layers_are_refused_by_name(self) -> None:
        module = SmallModule()
        module.net[0] = nn.LazyLinear(16)
        with pytest.raises(ConfigurationError, match=r"net\.0\.weight.*lazy"):
            fit(module)

    def test_a_metric_that_is_never_finite_ends_well(self) -> None:
        class Diverges(SmallModule):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self(batch[0])
                self.log("val_loss", math.nan)

        done, _ = fit(Diverges(), scheme="w4a8", callbacks=FixedAllocator("ptq"))
        assert done.summary["metric_fp"] is None
        assert done.summary["metric_quantized"] is None
        assert done.summary["best_round"] is None
        assert math.isnan(records(done)[2].metrics["fp/val_loss"])


class TestExport:
    def test_example_input_array_stands_in_for_validation(self) -> None:
        class TrainsOnly(SmallModule):
            validation_step = L.LightningModule.validation_step
            example_input_array = torch.zeros(2, NUM_FEATURES)

        done, _ = fit(TrainsOnly(), scheme="w4a8", callbacks=FixedAllocator("ptq"), max_rounds=1)
        assert done.summary["export"] == "model.pt2"

    def test_a_module_that_cannot_be_exported_is_packed(self) -> None:
        class DependsOnData(SmallModule):
            def forward(self, inputs: Tensor) -> Tensor:
                return self.net(inputs) if inputs.sum().item() > 0 else self.net(-inputs)

        done, _ = fit(DependsOnData(), scheme="w4a8", callbacks=FixedAllocator("ptq"), max_rounds=1)
        assert done.summary["export"] == "packed"
        assert done.summary["export_reason"]
        assert (done.run_dir / "model" / "model.safetensors").exists()
        assert done.summary["metric_quantized"] == records(done)[1].metric_quantized


class _Poisons(SmallModule):
    """NaN where a client's first input is marked."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if (batch[0] == 77).any() else loss


class _PoisonedData(SmallData):
    def dataset(self, client_id: Any) -> Any:
        data = super().dataset(client_id)
        if client_id == 2:
            data.tensors[0][0, 0] = 77.0
        return data


@pytest.mark.usefixtures("quick")
class TestBadClients:
    @pytest.mark.parametrize("scheme", [None, "w4a8"])
    def test_an_update_that_is_not_finite_is_quarantined(self, scheme: str | None) -> None:
        settings: dict[str, Any] = {"scheme": scheme, "callbacks": FixedAllocator("qat" if scheme else "fp")}
        with pytest.warns(UserWarning, match=r"round \d: client 2 is quarantined: .*not finite"):
            done, state = fit(_Poisons(), _PoisonedData(), **settings)
        assert done.summary["quarantined"] == 2
        statuses = {each.client_id: each.status for each in records(done)[1].clients}
        assert statuses == {0: "ok", 1: "ok", 2: "quarantined", 3: "ok"}
        assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())

    def test_the_others_are_averaged_as_if_it_were_not_there(self) -> None:
        with pytest.warns(UserWarning, match="quarantined"):
            _, poisoned = fit(_Poisons(), _PoisonedData(), max_rounds=1)
        _, without = fit(_Poisons(), SmallData({0: 20, 1: 13, 3: 27}), max_rounds=1)
        # Client 3 is third without client 2, so its examples differ; give it the same.
        data = SmallData({0: 20, 1: 13, 3: 27})
        data.dataset = SmallData().dataset  # type: ignore[method-assign]  # by id, as with all four
        _, same = fit(_Poisons(), data, max_rounds=1)
        assert same_bits(poisoned, same)
        assert not same_bits(poisoned, without)

    def test_a_round_without_any_usable_update_keeps_the_model(self) -> None:
        class AllPoisoned(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return super().training_step(batch, batch_idx) * math.nan

        with pytest.warns(UserWarning, match="quarantined|no usable update") as caught:  # either
            _, state = fit(AllPoisoned())
        assert sum("no usable update arrived" in str(warning.message) for warning in caught) == 2
        assert same_bits(state, SmallModule().state_dict())

    def test_an_empty_client_is_left_out_with_a_warning(self) -> None:
        data = SmallData({"a": 20, "b": 0, "c": 9})
        with pytest.warns(UserWarning, match="1 of 3 clients hold no examples and are left out: b"):
            done, _ = fit(data=data)
        assert {each.client_id for record in records(done) for each in record.clients} == {"a", "c"}

    def test_late_clients_are_left_out(self) -> None:
        everyone, _ = fit(fleet="mixed", max_rounds=1, data=SmallData((20,) * 6))
        seconds = {each.client_id: each.virtual_seconds for each in records(everyone)[1].clients}
        deadline = sorted(seconds.values())[2] * 1.001
        done, state = fit(fleet="mixed", max_rounds=1, data=SmallData((20,) * 6), round_deadline=deadline)
        record = records(done)[1]
        late = {each.client_id for each in record.clients if each.status == "late"}
        assert late == {client_id for client_id, value in seconds.items() if value > deadline} != set()
        assert (record.late, record.virtual_seconds) == (len(late), deadline)
        for each in record.clients:
            assert (each.uplink_bytes, each.num_steps, each.metrics) == (0, 0, {}) or each.client_id not in late
        on_time = SmallData({client_id: 20 for client_id in range(6) if client_id not in late})
        on_time.dataset = SmallData((20,) * 6).dataset  # type: ignore[method-assign]  # the same examples
        assert same_bits(state, fit(data=on_time, max_rounds=1)[1])

    def test_a_deadline_that_nobody_can_meet(self) -> None:
        with pytest.raises(ConfigurationError, match=r"round_deadline 1e-09 .* every client would be late"):
            fit(round_deadline=1e-9)

    def test_a_client_without_a_full_batch_sends_what_it_received(self) -> None:
        class DropsLast(SmallData):
            def train_dataloader(self, client_id: Any) -> Any:
                return DataLoader(self.dataset(client_id), 8, shuffle=True, drop_last=True)

        done, _ = fit(data=DropsLast((20, 3)), local_steps=4)
        assert [each.num_steps for each in records(done)[1].clients] == [4, 0]


@pytest.mark.usefixtures("quick")
class TestOptions:
    def test_ema_is_what_is_evaluated_and_deployed(self) -> None:
        states: list[StateDict] = []

        class Keeps(FedAvg):
            def step(self, current: StateDict, mean: StateDict, parameter_names: frozenset[str]) -> StateDict:
                states.append(super().step(current, mean, parameter_names))
                return states[-1]

        done, plain = fit(max_rounds=3, ema_decay=0.75, aggregator=Keeps())
        assert same_bits(plain, fit(max_rounds=3)[1]), "averaging must not change training"
        wanted = states[0]["net.0.weight"]
        for state in states[1:]:
            wanted = 0.75 * wanted + 0.25 * state["net.0.weight"]
        saved = checkpoint(done)["state"]
        torch.testing.assert_close(saved["averaged_state"]["net.0.weight"], wanted)
        module = SmallModule()
        module.load_state_dict(saved["averaged_state"])
        got = trainer().validate(module, SmallData())
        assert got["fp/val_loss"] == records(done)[3].metrics["fp/val_loss"]

    def test_early_stopping(self) -> None:
        stopping = EarlyStopping(patience=2, min_delta=100.0)
        done, _ = fit(max_rounds=50, callbacks=stopping)
        assert done.summary["rounds"] == 2
        assert "stopped after round 2" in stopping.reason
        assert checkpoint(done)["state"]["stopped"] is True

    def test_downlink_on_the_grid(self) -> None:
        received: list[int] = []

        class Notes(SmallModule):
            def on_train_start(self) -> None:
                received.append(len(self.net[0].weight[0].unique()))

        settings: dict[str, Any] = {"scheme": "w2a8", "callbacks": FixedAllocator("ptq"), "max_rounds": 1}
        settings["scheme"] = QuantScheme("w2a8", edge_bits=None)
        done, _ = fit(Notes(), downlink="scheme", **settings)
        on_grid, received[:] = received[1:], []  # the first is the probe's
        other, _ = fit(Notes(), **settings)
        assert max(on_grid) <= 4
        assert min(received[1:]) == NUM_FEATURES
        assert done.summary["downlink_bytes"] < other.summary["downlink_bytes"]

    @pytest.mark.parametrize("uplink", ["weights", "delta"])
    def test_uplink(self, uplink: str) -> None:
        done, state = fit(scheme="w4a8", callbacks=FixedAllocator("ptq"), uplink=uplink, max_rounds=3)
        fp, _ = fit(max_rounds=3)
        assert done.summary["uplink_bytes"] < fp.summary["uplink_bytes"]
        losses = [each.metrics["fp/val_loss"] for each in records(done)]
        assert losses[-1] < losses[0]
        assert all(value.isfinite().all() for value in state.values())

    def test_bf16_mixed(self) -> None:
        kinds: list[torch.dtype] = []

        class Notes(SmallModule):
            def forward(self, inputs: Tensor) -> Tensor:
                output = super().forward(inputs)
                kinds.append(output.dtype)
                return output

        done, state = fit(Notes(), precision="bf16-mixed", max_rounds=3)
        assert torch.bfloat16 in kinds
        assert {value.dtype for value in state.values()} == {torch.float32}
        losses = [each.metrics["fp/val_loss"] for each in records(done)]
        assert losses[-1] < losses[0]
        assert not same_bits(state, fit(max_rounds=3)[1])
        for mode in ("ptq", "qat"):
            fit(precision="bf16-mixed", scheme="w4a8", callbacks=FixedAllocator(mode), max_rounds=1)  # type: ignore[arg-type]

    def test_round_lr(self) -> None:
        rates: list[float] = []

        class Notes(SmallModule):
            def on_train_start(self) -> None:
                rates.append(self.optimizers().param_groups[0]["lr"])

        fit(Notes(), SmallData((9,)), max_rounds=4, round_lr="linear")
        assert rates[1:] == pytest.approx([0.1, 0.075, 0.05, 0.025])  # the first is the probe's

    def test_evaluates_and_saves_every_n_rounds(self) -> None:
        saved: list[list[str]] = []

        def look(there: FederatedTrainer, record: RoundRecord) -> None:
            saved.append(sorted(path.name for path in (there.run_dir / "checkpoints").glob("round*")))

        done, _ = fit(max_rounds=5, eval_every_n_rounds=2, checkpoint_every_n_rounds=3, callbacks=Recorder(look))
        assert [each.metric_fp is not None for each in records(done)] == [True, False, True, False, True, True]
        assert saved[-1] == ["round-000000.ckpt", "round-000003.ckpt"]
        names = sorted(path.name for path in (done.run_dir / "checkpoints").glob("round*"))
        assert names == ["round-000003.ckpt", "round-000005.ckpt"]

    def test_hooks_come_in_order(self) -> None:
        recorder = Recorder()
        fit(callbacks=recorder, data=SmallData({"a": 9, "b": 12}))
        rounds = [[f"round {n} start ['a', 'b']", "client b", "client a", f"round {n} end"] for n in (1, 2)]
        assert recorder.calls == ["fit start", "round 0 end", *rounds[0], *rounds[1], "fit end allocator_seconds"]

    def test_a_callback_may_end_the_run(self) -> None:
        def stop(there: FederatedTrainer, record: RoundRecord) -> None:
            there.should_stop = record.round == 1

        done, _ = fit(max_rounds=9, callbacks=Recorder(stop))
        assert done.summary["rounds"] == 1
        assert (done.run_dir / "checkpoints" / "round-000001.ckpt").exists()

    def test_an_error_is_told_to_callbacks(self) -> None:
        def fail(there: FederatedTrainer, record: RoundRecord) -> None:
            raise ZeroDivisionError

        recorder = Recorder(fail)
        with pytest.raises(ZeroDivisionError):
            fit(callbacks=recorder)
        assert recorder.calls[-1] == "exception ZeroDivisionError"

    def test_threads_are_put_back(self) -> None:
        seen: list[int] = []

        class Notes(SmallModule):
            def on_train_start(self) -> None:
                seen.append(torch.get_num_threads())

        before = torch.get_num_threads()
        fit(Notes(), threads=2, max_rounds=1)
        assert set(seen) == {2}
        assert torch.get_num_threads() == before

    def test_the_allocator_decides_modes(self) -> None:
        class Odd(Allocator):
            def setup(self, context: Any) -> None:
                self.observed: list[int] = []

            def propose(self, round_number: int, cohort: Sequence[Any]) -> Plan:
                modes = ("fp", "ptq", "qat")
                return Plan({client_id: modes[(client_id + round_number) % 3] for client_id in cohort})

            def observe(self, result: RoundRecord) -> None:
                self.observed.append(result.round)

        allocator = Odd()
        done, _ = fit(scheme="w4a8", callbacks=allocator)
        assert [each.mode for each in records(done)[1].clients] == ["ptq", "qat", "fp", "ptq"]
        assert [each.mode for each in records(done)[2].clients] == ["qat", "fp", "ptq", "qat"]
        assert allocator.observed == [1, 2]

    def test_a_plan_must_name_the_cohort(self) -> None:
        class Forgets(Allocator):
            def propose(self, round_number: int, cohort: Sequence[Any]) -> Plan:
                return Plan(dict.fromkeys(cohort[1:], "ptq"))

        with pytest.raises(ConfigurationError, match="Forgets planned 3 clients for a cohort of 4"):
            fit(scheme="w4a8", callbacks=Forgets())

    def test_label_divergence_reaches_the_allocator(self) -> None:
        done, _ = fit(scheme="w4a8", callbacks=FixedAllocator(0.5, by="divergence"), max_rounds=1)
        assert records(done)[1].mode_counts == {"fp": 0, "ptq": 2, "qat": 2}
        with pytest.raises(ConfigurationError, match="divergence"):
            fit(scheme="w4a8", callbacks=FixedAllocator(0.5, by="divergence"), data=SmallData(tells=False))


class TestValidateAndTest:
    def test_give_the_modules_metrics(self) -> None:
        there = trainer(scheme="w8a8")
        got = there.validate(SmallModule(), SmallData())
        assert list(got) == ["fp/val_loss", "fp/val_accuracy", "quantized/val_loss", "quantized/val_accuracy"]
        assert got["quantized/val_loss"] == pytest.approx(got["fp/val_loss"], rel=0.05)
        assert list(there.test(SmallModule(), SmallData())) == ["fp/test_loss", "quantized/test_loss"]

    def test_agree_with_the_rounds(self) -> None:
        module = SmallModule()
        done, _ = fit(module, scheme="w4a8", callbacks=FixedAllocator("qat"))
        got = done.validate(module, SmallData())
        best = records(done)[done.summary["best_round"]]
        assert got == {name: value for name, value in best.metrics.items() if not name.startswith("train/")}

    def test_a_module_without_the_step(self) -> None:
        class TrainsOnly(SmallModule):
            validation_step = L.LightningModule.validation_step

        with pytest.raises(ConfigurationError, match="TrainsOnly has no validation_step"):
            trainer().validate(TrainsOnly(), SmallData())


@pytest.mark.usefixtures("quick")
class TestRefuses:
    """Before the first round, and before anything is written."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_rounds": 0}, "max_rounds 0"),
            ({"max_rounds": 2.5}, "max_rounds 2.5: must be a whole number"),
            ({"local_epochs": 1.5}, "local_epochs 1.5: must be a whole number"),
            ({"local_steps": -1}, "local_steps -1"),
            ({"local_epochs": 1, "local_steps": 1}, "both given"),
            ({"threads": 0}, "threads 0"),
            ({"accumulate_grad_batches": 0}, "accumulate_grad_batches 0"),
            ({"gradient_clip_val": -1.0}, "gradient_clip_val -1.0"),
            ({"round_deadline": math.inf}, "round_deadline inf"),
            ({"round_lr": "cosin"}, "round_lr 'cosin'.*did you mean 'cosine'"),
            ({"round_lr": 0.0}, "round_lr 0.0"),
            ({"ema_decay": 1.0}, r"ema_decay 1\.0: must be between 0 and 1"),
            ({"ema_decay": math.nan}, "ema_decay nan"),
            ({"uplink": "weight"}, "uplink 'weight'.*did you mean 'weights'"),
            ({"downlink": "w4"}, "downlink 'w4'"),
            ({"precision": "16-mixed"}, "precision '16-mixed'"),
            ({"monitor_mode": "maximum"}, "monitor_mode 'maximum'"),
            ({"scheme": "w9a8"}, "did you mean 'w8a8'"),
            ({"callbacks": [FixedAllocator("ptq"), FixedAllocator("qat")]}, "2 allocators"),
            ({"callbacks": [Recorder(), Recorder()]}, "two share the state_key 'Recorder'"),
            ({"callbacks": [L.Callback()]}, "Callback is neither"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            trainer(**settings)

    @pytest.mark.parametrize(
        ("module", "data", "settings", "message"),
        [
            (nn.Linear(2, 2), None, {}, "module: got Linear; give a LightningModule"),
            (None, L.LightningDataModule(), {}, "give a FederatedDataModule"),
            (None, SmallData({}), {}, "no clients"),
            (None, SmallData((0, 0)), {}, "all 2 clients are empty"),
            (None, None, {"clients_per_round": 5}, r"clients_per_round 5: must be 1\.\.4"),
            (None, None, {"monitor": "val_acc"}, "'val_acc': nobody logs it; logged: val_loss, val_accuracy"),
            (None, None, {"callbacks": FixedAllocator("ptq")}, "trainer.scheme is not set"),
            (None, None, {"scheme": QuantScheme("w4a8-g7", edge_bits=None)}, r"net\.0"),
            (None, None, {"fleet": "mixd"}, "did you mean 'mixed'"),
        ],
    )
    def test_before_anything_is_written(
        self, module: Any, data: Any, settings: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            fit(module, data or SmallData() if data is None else data, default_root_dir=tmp_path / "runs", **settings)
        assert not (tmp_path / "runs").exists()

    def test_nothing_to_quantize(self, tmp_path: Path) -> None:
        class NoLayers(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential()
                self.weight = nn.Parameter(torch.zeros(NUM_FEATURES, 3))

            def forward(self, inputs: Tensor) -> Tensor:
                return inputs @ self.weight

        fit(NoLayers(), max_rounds=1)
        with pytest.raises(ConfigurationError, match="quantiz"):
            fit(NoLayers(), scheme="w4a8", callbacks=FixedAllocator("qat"), default_root_dir=tmp_path / "other")
        assert not (tmp_path / "other").exists()

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match="cannot be written"):
            fit(default_root_dir=tmp_path / "file")
