"""`fedhq eval`: the deployed model beside its weights, and what it refuses."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fedhq_lightning.cli.evaluate_model import Evaluation, evaluate_model
from fedhq_lightning.cli.evaluation_tables import print_evaluation
from fedhq_lightning.cli.main import main
from fedhq_lightning.deploy.model_files import find_files
from fedhq_lightning.launch.resolve import resolve

from ..conftest import Warned
from ..report.test_final_table import Terminal
from ..small_recipe import ABSENT, write_recipe

ALONE = "give a run directory, its model/ folder or a file of it"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory, and beside it one without a scheme, and recipes of other models."""
    root = tmp_path_factory.mktemp("evaluated")
    wide = {"model.init_args.hidden_sizes": [24]}
    fp = {"trainer.scheme": ABSENT, "trainer.callbacks": ABSENT}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "path", list(sys.path))
        for name, changes in {"mine": {}, "wide": wide, "plain": fp}.items():
            write_recipe(root / f"{name}.yaml", changes)
        for name in ("mine", "plain"):
            assert main(["run", f"{name}.yaml"]) == 0
            next((root / "runs" / name).iterdir()).rename(root / "runs" / name / "done")
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in a folder with the recipes."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Path("runs/mine/done")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["eval", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    return captured.err.removeprefix(f"fedhq: eval {arguments[0]}: ").rstrip("\n")


class TestWhatIsFound:
    def test_every_way_to_name_a_model_leads_to_the_same_files(self, run: Path) -> None:
        found = find_files(run)
        assert None not in (found.program, found.weights, found.recipe)
        assert find_files(run / "model") == find_files(run / "model" / "model.pt2") == found

    def test_is_what_the_run_has_found(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        summary = json.loads((run / "summary.json").read_text())
        files = sorted(run.rglob("*"))
        found = evaluate_model(run)
        assert found.fp_metrics["val_accuracy"] == summary["metric_fp"]
        assert found.deployed_metrics["val_accuracy"] == summary["metric_quantized"]
        assert (found.model, found.scheme, found.deployed) == ("MLP", "w4a8", "model.pt2")
        assert found.is_conversion is True
        assert found.inference is not None
        assert list(found.inference["batch_sizes"]) == list(summary["inference"]["batch_sizes"])
        for key in ("fp32_bytes", "packed_bytes", "threads"):
            assert found.inference[key] == summary["inference"][key]
        assert found.inference["int8_bytes"] == summary["files"][0]["bytes"]
        assert sorted(run.rglob("*")) == files, "nothing is written"
        shown = capsys.readouterr().out
        assert re.search(
            rf"^  val_accuracy +{summary['metric_fp']:.4f} +{summary['metric_quantized']:.4f}$", shown, re.M
        )
        assert "batch of 1: int8 is " in shown
        assert "\x1b" not in shown

    def test_the_file_is_evaluated_and_not_the_weights_anew(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Another model of the same shape, under the same name."""
        summary = json.loads((run / "summary.json").read_text())
        _, model, _ = resolve("mine", Path("mine.yaml").read_text(), ["--trainer.seed=7"]).instantiate()
        from fedhq_lightning.deploy import export_program
        from fedhq_lightning.quantize import QuantScheme, convert

        export_program(convert(model, QuantScheme("w4a8")), (torch.randn(3, 1, 8, 8),), run / "model/model.pt2")
        after = evaluate_model(run)
        assert after.deployed_metrics["val_accuracy"] != summary["metric_quantized"]
        assert after.fp_metrics["val_accuracy"] == summary["metric_fp"]
        assert after.is_conversion is False
        assert "model.pt2 is not what scheme w4a8 makes of the weights beside it" in capsys.readouterr().out

    def test_a_program_alone_with_a_recipe(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("alone").mkdir()
        program = (run / "model/model.pt2").rename("alone/copied.pt2")
        summary = json.loads((run / "summary.json").read_text())
        assert main(["eval", str(program), "mine.yaml", "--trainer.threads=1"]) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"^ +copied.pt2\n(.*\n)*  val_accuracy +{summary['metric_quantized']:.4f}$", shown, re.M)
        assert "no weights.safetensors beside it" in shown
        assert "fp32" not in shown

    @pytest.mark.corner
    def test_layers_that_learn_their_sizes_from_a_batch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "path", list(sys.path))
        user = "tests.user_code"
        write_recipe(tmp_path / "lazy.yaml", {"model": {"class_path": f"{user}.LazyMLP"}, "trainer.max_rounds": 1})
        assert main(["run", "lazy.yaml"]) == 0
        (lazy_run,) = (tmp_path / "runs/lazy").iterdir()
        summary = json.loads((lazy_run / "summary.json").read_text())
        assert evaluate_model(lazy_run).deployed_metrics["val_accuracy"] == summary["metric_quantized"]

    def test_weights_alone(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found = evaluate_model(run.parents[1] / "plain/done")
        assert (found.scheme, found.deployed, found.deployed_metrics, found.inference) == (None, None, {}, None)
        assert capsys.readouterr().out.startswith("MLP, float32")


class TestRefusals:
    def test_no_model(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert refusal(capsys, "nowhere") == f"no such folder or file; {ALONE}"
        assert refusal(capsys, "mine.yaml") == f"mine.yaml is no .pt2, .onnx, .pte or .safetensors file; {ALONE}"
        shutil.rmtree(run / "model")
        assert refusal(capsys, str(run)).startswith("no model.pt2, model.safetensors or weights.safetensors in ")

    def test_no_recipe(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert refusal(capsys, str(run), "mnist5k").startswith("unknown recipe 'mnist5k': shipped are ")
        text = (run / "recipe.yaml").read_text()
        (run / "recipe.yaml").write_text(f"# Started from Python\n{text}")
        assert refusal(capsys, str(run)).startswith("this run was started from Python; name a recipe")
        (run / "recipe.yaml").unlink()
        assert refusal(capsys, str(run)) == (
            "no recipe.yaml of a run beside it; name the recipe: fedhq eval MODEL RECIPE"
        )

    def test_an_unknown_key(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said = refusal(capsys, str(run), "--trainer.thread=2")
        assert "unknown key 'trainer.thread'; did you mean 'trainer.threads'?" in said

    @pytest.mark.parametrize(
        ("file", "kept"),
        [("model.pt2", 0.5), ("model.pt2", 0), ("weights.safetensors", 0.5), ("weights.safetensors", 0)],
    )
    def test_a_damaged_file(
        self,
        run: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        warned: Warned,
        file: str,
        kept: float,
    ) -> None:
        # torch logs to the standard error of when it was imported, which capsys does not see.
        monkeypatch.setattr(logging.getLogger("torch"), "handlers", [warned])
        path = run / "model" / file
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        said = refusal(capsys, str(run))
        assert said.startswith(f"{file} is damaged" if file == "model.pt2" else f"{file} cannot be read as")
        assert not warned.messages

    def test_another_model(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert refusal(capsys, str(run), "wide.yaml") == (
            "weights.safetensors is of another model than the MLP of recipe wide: 'layers.1.weight' is of shape "
            "(16, 64) in the file and of shape (24, 64) in the recipe's; give the recipe that it was trained with"
        )
        assert refusal(capsys, str(run), "plain.yaml") == (
            "recipe plain has no scheme, but model.pt2 is quantized: not its model"
        )
        from fedhq_lightning.deploy import export_program
        from fedhq_lightning.quantize import QuantScheme, convert

        layer = convert(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2)), QuantScheme("w4a8"))
        export_program(layer, (torch.randn(3, 5),), run / "model/model.pt2")
        said = refusal(capsys, str(run))
        assert said.startswith("model.pt2 does not do what the MLP of recipe mine does: ")


def test_on_a_terminal_a_table_within_its_width() -> None:
    times = {"fp32_ms": 0.5, "fp32_ms_quartiles": [0.4, 0.6], "int8_ms": 1, "int8_ms_quartiles": [0.9, 1.1]}
    inference = {"fp32_bytes": 70_000, "int8_bytes": 30_000, "packed_bytes": 15_000, "threads": 1}
    inference["batch_sizes"] = {"256": times | {"fp32": "torch", "speedup": 0.5, "repetitions": 4}}  # type: ignore[assignment]
    file = Terminal()
    console = Console(file=file, force_terminal=True, width=80, color_system="standard")
    found = Evaluation("MLP", "w4a8", "model.pt2", {"acc[red]": 0.5}, {"acc[red]": 0.25}, inference)
    print_evaluation(found, 1, console)
    plain = re.sub(r"\x1b\[[0-9;?]*m", "", file.getvalue())
    assert "─" in plain
    assert max(map(len, plain.splitlines())) <= 80
    assert "acc[red]" in plain
    assert "batch of 256: int8 is 2 times as slow" in plain
