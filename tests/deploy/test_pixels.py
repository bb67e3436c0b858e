"""Files of the deployed model that take pixels: what they compute, tell, and are refused for."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning.cli.evaluate_model import evaluate_model
from fedhq_lightning.cli.main import main
from fedhq_lightning.data import Digits
from fedhq_lightning.deploy.formats import read_program
from fedhq_lightning.deploy.model_folder import write_model_folder
from fedhq_lightning.deploy.pixels import Pixels
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models import MLP, LeNet5
from fedhq_lightning.quantize import QuantScheme, convert

from ..small_federation import SmallData, SmallModule
from ..small_recipe import ABSENT, write_recipe
from ..trainer.runs import fit

COLOURS = Pixels((120.5, 33.3, 0.25), (60.1, 77.7, 12.5), torch.uint8)
FORMATS = ["onnx"] + ["executorch"] * (find_spec("executorch") is not None)


def test_every_whole_pixel_of_every_channel_comes_back_with_the_bits_of_its_input() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 3, 1, 2)
    inputs = COLOURS.normalized(pixels)
    assert torch.equal(COLOURS.of(inputs), pixels)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (COLOURS.mean, COLOURS.std))
    assert torch.equal(inputs, pixels.float().sub_(mean).div_(std))  # as ImageTensors normalizes


def test_pixels_of_floats_come_back_but_for_rounding() -> None:
    unit = Pixels((0.5,), (0.25,))
    values = torch.rand(7, 5)
    assert torch.allclose(unit.of(unit.normalized(values)), values, atol=1e-6)


TOLD: dict[str, tuple[Mapping[str, Any] | None, str]] = {
    "nothing": (None, "tells no `pixels` with `mean` and `std`"),
    "classes": ({"classes": ["a", "b"]}, "tells no `pixels` with `mean` and `std`"),
    "no std": ({"pixels": {"mean": [0.0]}}, "give `mean` and `std`"),
    "of other numbers": ({"pixels": {"mean": [0.0, 1.0], "std": [1.0]}}, "give `mean` and `std`"),
    "zero": ({"pixels": {"mean": [0.0], "std": [0.0]}}, "std above 0"),
    "no number": ({"pixels": {"mean": [0.0], "std": [float("nan")]}}, "std above 0"),
    "of another kind": ({"pixels": {"mean": [0.0], "std": [1.0], "dtype": "int4"}}, "one of float32, uint8"),
    "no mapping": ({"pixels": 3}, "give `mean` and `std`"),
}


@pytest.mark.parametrize("told", TOLD)
def test_a_normalization_that_is_not_told_well_is_refused(told: str) -> None:
    inputs, words = TOLD[told]
    with pytest.raises(ConfigurationError) as error:
        Pixels.told_by(inputs)
    assert words in str(error.value)


ARGUMENTS: dict[str, tuple[tuple[Any, ...] | None, str]] = {
    "none": (None, "one float32 tensor of images"),
    "two": ((torch.rand(2, 3, 4, 4), torch.rand(2)), "one float32 tensor of images"),
    "words": ((torch.ones(2, 3, dtype=torch.int64),), "one float32 tensor of images"),
    "other channels": ((torch.rand(2, 1, 4, 4),), "3 channels, and forward takes 1"),
    "not normalized so": ((torch.rand(2, 3, 4, 4),), "not (pixel - mean) / std"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_forward_that_takes_something_else_is_refused(case: str) -> None:
    args, words = ARGUMENTS[case]
    with pytest.raises(ConfigurationError) as error:
        COLOURS.check(args)
    assert words in str(error.value)


def test_every_file_takes_pixels_and_computes_what_the_module_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scheme, pixels = QuantScheme("w4a8"), Pixels((33.3,), (78.6,), torch.uint8)
    module, raw = LeNet5(), torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8)
    converted, inputs = convert(module, scheme), pixels.normalized(raw)
    assert isinstance(converted, L.LightningModule)
    written = write_model_folder(
        tmp_path, converted, module.state_dict(), (inputs,), scheme, "LeNet5", exports=FORMATS, pixels=pixels,
        inputs={"pixels": {"mean": [33.3], "std": [78.6], "dtype": "uint8"}},
    )  # fmt: skip
    with torch.no_grad():
        expected = converted(inputs)
        assert torch.equal(converted(inputs), expected)  # still takes inputs itself
        for file in written.files:
            assert file.reason == ""
            assert file.agreement is not None
            program = read_program(tmp_path / file.name, trust=file.name.endswith(".pte"))
            assert program.facts["takes"] == "pixels"
            found = program(raw)
            if file.name.endswith(".pte"):
                assert torch.allclose(found, expected, atol=1e-2 * expected.abs().max().item())
            else:
                assert file.agreement.bit_equal == 1
                assert torch.equal(found, expected)
    readme = (tmp_path / "README.md").read_text()
    assert "uint8 of shape (batch, 1, 28, 28)" in readme
    assert "It takes pixels as the data have them (whole numbers, uint8)" in readme


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run whose files take pixels."""
    root = tmp_path_factory.mktemp("pixels")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_recipe(root / "mine.yaml", {"trainer.export": ABSENT, "trainer.export_inputs": "pixels"})
        assert main(["run", "mine.yaml"]) == 0
    (found,) = (root / "runs/mine").iterdir()
    return found


def test_the_metric_recomputed_from_pixels_is_the_runs(run: Path) -> None:
    import onnxruntime

    held_out = Digits().val_dataset
    session = onnxruntime.InferenceSession(run / "model/model.onnx")
    (scores,) = session.run(None, {"images": held_out.images.numpy()})
    summary = json.loads((run / "summary.json").read_text())
    accuracy = np.mean(scores.argmax(1) == held_out.targets.numpy())
    assert accuracy == pytest.approx(summary["metric_quantized"], abs=1e-6)
    assert [file["agreement"]["bit_equal"] for file in summary["files"]] == [1.0, 1.0]
    told = session.get_modelmeta().custom_metadata_map
    assert (told["takes"], json.loads(told["inputs"])["pixels"]["dtype"]) == ("pixels", "uint8")


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_eval_gives_such_a_file_pixels(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate_model(run / "model" / name)
    assert found.deployed_metrics["val_accuracy"] == json.loads((run / "summary.json").read_text())["metric_quantized"]
    assert found.is_conversion is True
    assert "the same bits on 64 samples" in capsys.readouterr().out


def test_eval_on_data_that_tell_no_pixels_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "model_inputs", lambda self: None)
    with pytest.raises(
        ConfigurationError, match=r"model\.onnx takes pixels, but model_inputs of the data module tells"
    ):
        evaluate_model(run / "model/model.onnx")


class UnitPixels(SmallData):
    """Rows of numbers from 0 to 1, normalized as images often are."""

    def model_inputs(self) -> dict[str, Any]:
        return {"pixels": {"mean": [0.45], "std": [0.22]}}

    def val_dataloader(self) -> Any:
        dataset: Any = super().val_dataloader().dataset
        inputs, labels = dataset.tensors
        return DataLoader(TensorDataset((inputs.sigmoid() - 0.45) / 0.22, labels), 32)


@pytest.mark.usefixtures("no_report")
def test_pixels_may_be_numbers_in_floating_point() -> None:
    trainer, _ = fit(
        SmallModule(), UnitPixels(), scheme="w4a8", monitor="val_accuracy", export="onnx", export_inputs="pixels"
    )
    assert [file["name"] for file in trainer.summary["files"]] == ["model.pt2", "model.onnx"]
    assert all(file["agreement"]["bit_equal"] == 1 for file in trainer.summary["files"])
    program = read_program(trainer.run_dir / "model/model.pt2")
    assert not program(torch.rand(3, 12)).equal(program(torch.rand(3, 12) + 1))
    logged = trainer.summary["metric_quantized"]
    assert logged == pytest.approx(evaluated(program, UnitPixels()), abs=1e-6)


def evaluated(program: torch.nn.Module, data: UnitPixels) -> float:
    """Accuracy of a program on pixels."""
    pixels, hits = Pixels((0.45,), (0.22,)), list[Tensor]()
    for inputs, labels in data.val_dataloader():
        hits.append(program(pixels.of(inputs)).argmax(1) == labels)
    return torch.cat(hits).float().mean().item()


def test_data_that_tell_no_normalization_are_refused_before_round_1() -> None:
    with pytest.raises(ConfigurationError, match=r"export_inputs 'pixels', with the data of SmallData: model_inputs"):
        fit(scheme="w4a8", export_inputs="pixels")
    assert not [*Path.cwd().rglob("rounds.jsonl")]


def test_a_word_that_is_not_known_is_refused() -> None:
    from fedhq_lightning import FederatedTrainer

    with pytest.raises(ConfigurationError, match="export_inputs 'raw': must be one of pixels"):
        FederatedTrainer(export_inputs="raw")  # type: ignore[arg-type]  # the point


def test_without_it_files_take_what_forward_takes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scheme, module = QuantScheme("w4a8"), MLP(image_size=8)
    converted, inputs = convert(module, scheme), torch.randn(4, 1, 8, 8)
    assert isinstance(converted, L.LightningModule)
    write_model_folder(tmp_path, converted, module.state_dict(), (inputs,), scheme, "MLP")
    program = read_program(tmp_path / "model.pt2")
    assert program.facts == {"model": "MLP", "scheme": "w4a8"}
    assert torch.equal(program(inputs), converted(inputs))
