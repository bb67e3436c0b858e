"""`model.onnx` of a whole run: its metric through onnxruntime alone, on arrays, is the run's."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from fedhq_lightning.cli.evaluate_model import evaluate_model
from fedhq_lightning.cli.main import main
from fedhq_lightning.data import Digits

from ..small_recipe import ABSENT, write_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory, whose recipe does not say `export`."""
    root = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_recipe(root / "mine.yaml", {"trainer.export": ABSENT})
        assert main(["run", "mine.yaml"]) == 0
    (found,) = (root / "runs/mine").iterdir()
    return found


def test_the_metric_recomputed_from_arrays_is_the_runs(run: Path, tmp_path: Path) -> None:
    images, labels = zip(*Digits().val_dataloader(), strict=True)
    np.savez(tmp_path / "held_out.npz", images=np.concatenate(images), labels=np.concatenate(labels))
    held_out = np.load(tmp_path / "held_out.npz")
    session = onnxruntime.InferenceSession(run / "model/model.onnx")
    (scores,) = session.run(None, {"images": held_out["images"]})
    summary = json.loads((run / "summary.json").read_text())
    accuracy = (scores.argmax(1) == held_out["labels"]).mean()
    assert accuracy == pytest.approx(summary["metric_quantized"], abs=1e-6)
    told = {file["name"]: file for file in summary["files"]}["model.onnx"]
    assert told["agreement"] == {
        "samples": len(held_out["labels"]), "bit_equal": 1.0, "same_argmax": 1.0, "largest_difference": 0.0
    }  # fmt: skip
    assert told["bytes"] == (run / "model/model.onnx").stat().st_size


def test_it_tells_the_metrics_and_how_pixels_become_inputs(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    told = onnxruntime.InferenceSession(run / "model/model.onnx").get_modelmeta().custom_metadata_map
    assert (told["model"], told["scheme"]) == ("MLP", "w4a8")
    assert json.loads(told["metrics"])["val_accuracy"] == summary["metric_quantized"]
    pixels = json.loads(told["inputs"])["pixels"]
    raw = Digits().train_dataset.images[:3].numpy()
    mean, std = (np.float32(pixels[name]) for name in ("mean", "std"))
    assert np.allclose((raw - mean) / std, np.stack([Digits().train_dataset[row][0] for row in range(3)]), atol=1e-6)


def test_every_form_is_timed_and_the_fastest_named(run: Path) -> None:
    inference = json.loads((run / "summary.json").read_text())["inference"]
    for times in inference["batch_sizes"].values():
        assert list(times["forms"]) == ["fp32 in torch", "fp32 in onnxruntime", "model.pt2", "model.onnx"]
        medians = {name: each["ms"] for name, each in times["forms"].items()}
        assert times["int8_ms"] == medians[times["int8"]] == min(medians["model.pt2"], medians["model.onnx"])
        assert times["fp32_ms"] == min(medians["fp32 in torch"], medians["fp32 in onnxruntime"])


def test_eval_takes_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    found = evaluate_model(run / "model/model.onnx")
    assert found.deployed == "model.onnx"
    assert found.deployed_metrics["val_accuracy"] == summary["metric_quantized"]
    assert found.is_conversion is True
    shown = capsys.readouterr().out
    assert "beside the conversion of the weights: the same bits on 64 samples" in shown
    assert " as fp32 in " in shown


def test_eval_takes_a_packed_model(run: Path) -> None:
    from fedhq_lightning.deploy import save_packed
    from fedhq_lightning.launch.resolve import resolve
    from fedhq_lightning.quantize import QuantScheme, convert

    summary = json.loads((run / "summary.json").read_text())
    _, module, _ = resolve("mine", (run / "recipe.yaml").read_text(), []).instantiate()
    import safetensors.torch

    module.load_state_dict(safetensors.torch.load_file(run / "model/weights.safetensors"))
    save_packed(convert(module, QuantScheme("w4a8")), run / "model/copied.safetensors")
    found = evaluate_model(run / "model/copied.safetensors")
    assert found.deployed == "copied.safetensors"
    assert found.deployed_metrics["val_accuracy"] == summary["metric_quantized"]
