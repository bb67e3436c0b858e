"""What a run leaves behind."""

import json
import math
import subprocess
import sys

import lightning as L
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import NUM_FEATURES, SmallData, SmallModule, same_bits, trainer
from .runs import fit, records

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
            "model/load_model.py",
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

    @pytest.mark.corner
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
