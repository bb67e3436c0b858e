"""`model.pte`: the layers' own grid in XNNPACK's kernels, checked in ExecuTorch's runtime."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.deploy import executorch_program
from fedhq_lightning.deploy.executorch_model import ExecutorchModel
from fedhq_lightning.deploy.executorch_program import MOST_SAMPLES
from fedhq_lightning.deploy.export import ExportError, traced_program
from fedhq_lightning.deploy.fold_norms import fold_batch_norms
from fedhq_lightning.deploy.formats import read_program, write_formats
from fedhq_lightning.deploy.model_to_write import ModelToWrite
from fedhq_lightning.deploy.written_file import Agreement
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme, attach_ranges, convert

pytest.importorskip("executorch", reason="the extra `executorch` is not installed")


class Layers(nn.Module):
    """Every kind of layer that can be written."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 4, padding=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 2, groups=4, padding=(1, 0), bias=False), nn.Conv2d(4, 8, 2, groups=2, stride=2),
            nn.Conv2d(8, 6, 2, padding="same", dilation=2, bias=False), nn.BatchNorm2d(6),
        )  # fmt: skip
        self.mix = nn.Conv1d(6, 8, 2, dilation=2, padding=1)
        self.middle, self.head = nn.Linear(2, 8), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.mix(self.features(images).flatten(2))
        scores = self.head(self.middle(x).relu().flatten(1))
        return {"scores": scores, "shares": scores.softmax(1)}


def made_of(scheme: str, module: nn.Module | None = None, shape: tuple[int, ...] = (1, 8, 8)) -> ModelToWrite:
    torch.manual_seed(0)
    module = (Layers() if module is None else module).eval()
    grid = QuantScheme(scheme, edge_bits=None)
    for name in attach_ranges(module, grid):
        module.get_buffer(name).copy_(torch.tensor([-1.5, 2.0]))
    args = (torch.randn(16, *shape),)
    return ModelToWrite(convert(module, grid), args, "Layers", scheme, {"val_accuracy": 0.75}, {"mean": [0.5]})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelToWrite]:
    path, model = tmp_path_factory.mktemp("executorch") / "model.pte", made_of("w4a8")
    executorch_program.write(model, path)
    return path, model


def test_any_batch_agrees_with_the_converted_module(file: tuple[Path, ModelToWrite]) -> None:
    path, model = file
    program = read_program(path, trust=True)
    for samples in (1, 2, 15, 16, MOST_SAMPLES, MOST_SAMPLES + 3):
        x = torch.randn(samples, 1, 8, 8)
        found, expected = program(x), model.converted(x)
        assert list(found) == ["scores", "shares"]
        assert Agreement.between(found, expected, samples).largest_difference < 2e-2


def test_what_was_returned_stays_when_it_runs_again(file: tuple[Path, ModelToWrite]) -> None:
    program = read_program(file[0], trust=True)
    first = program(torch.ones(2, 1, 8, 8))["scores"]
    kept = first.clone()
    program(-torch.ones(2, 1, 8, 8))
    assert torch.equal(first, kept)


def test_what_cannot_be_run_is_told_once_and_by_us(
    file: tuple[Path, ModelToWrite], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def execute(self, inputs: object) -> None:
            os.write(2, b"CALL_DELEGATE execute failed")
            raise RuntimeError("method->execute() failed with error 0x1")

    program = ExecutorchModel(file[0].read_bytes())
    monkeypatch.setattr(program, "_method", Failing())
    with pytest.raises(RuntimeError, match=r"cannot run what it has made of the model .* 0x1.; take another file$"):
        program(torch.zeros(1, 1, 8, 8))
    assert capfd.readouterr().err == ""


def test_it_tells_what_it_is(file: tuple[Path, ModelToWrite]) -> None:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(file[0])
    told = {name: program.load_method(name).execute(())[0] for name in program.method_names - {"forward"}}
    assert told == {**file[1].facts(), "outputs": json.dumps(["scores", "shares"])}


@pytest.mark.parametrize("weight_bits", [3, 4, 8])
def test_integers_on_the_layers_grid(weight_bits: int, tmp_path: Path) -> None:
    """Not float32: a value is off where it was rounded to the level beside, and 4 bits take half a byte."""
    model = made_of(f"w{weight_bits}a8", nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 256)), (512,))
    executorch_program.write(model, tmp_path / "model.pte")
    found = Agreement.of(read_program(tmp_path / "model.pte", trust=True), model.converted, model.example_args)
    assert found.largest_difference < 5e-3
    in_float = Agreement.of(ExecutorchModel(executorch_program.in_float(model)), model.converted, model.example_args)
    assert in_float.largest_difference > found.largest_difference
    count = 512 * 256 + 256 * 256
    assert (tmp_path / "model.pte").stat().st_size < (count if weight_bits == 8 else count / 2) + 20_000


@pytest.mark.parametrize(
    ("scheme", "module", "why"),
    [
        ("w4", nn.Linear(64, 8), "layer '0' has activations in floating point, where XNNPACK's have 8 bits (w4a8 has)"),
        ("w4a4", nn.Linear(64, 8), "layer '0' has activations of 4 bits, where XNNPACK's have 8 bits (w4a8 has)"),
        ("w4a8s", nn.Linear(64, 8), "layer '0' has a static activation range, for which XNNPACK wants outputs on a"),
        ("w4a8-g32", nn.Linear(64, 8), "layer '0' has a scale for each group of weights, which XNNPACK rounds to"),
        ("w4a8", nn.Conv1d(1, 8, 3, padding=1, padding_mode="circular"), "layer '0' is padded by 'circular'"),
    ],
)
def test_layers_that_are_refused(scheme: str, module: nn.Module, why: str, tmp_path: Path) -> None:
    model = made_of(scheme, nn.Sequential(module), (1, 64) if isinstance(module, nn.Conv1d) else (64,))
    [told] = write_formats(["executorch"], model, tmp_path)
    assert told.reason.startswith(why)
    assert not list(tmp_path.iterdir())


def normed(gamma: Tensor, scheme: str = "w4a8") -> ModelToWrite:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.tensor([0.1, -0.2, 0.0, 0.3]), torch.tensor([0.5, 1.0, 2.0, 0.1])
    norm.weight.data, norm.bias.data = gamma, torch.tensor([0.5, 0.0, -0.5, 1.0])
    return made_of(scheme, nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm, nn.ReLU()), (3, 8, 8))


@pytest.mark.parametrize("gamma", [[1.0, 0.5, 2.0, 1.5], [-1.0, 0.5, 0.0, -1.5]])
def test_batch_norm_is_part_of_the_scales(gamma: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remaining = []

    def folded(program: torch.export.ExportedProgram) -> None:
        fold_batch_norms(program)
        remaining.append([node for node in program.graph.nodes if "batch_norm" in str(node.target)])

    monkeypatch.setattr(executorch_program, "fold_batch_norms", folded)
    model = normed(torch.tensor(gamma))
    executorch_program.write(model, tmp_path / "model.pte")
    assert remaining == [[]]
    found = Agreement.of(read_program(tmp_path / "model.pte", trust=True), model.converted, model.example_args)
    assert found.largest_difference < 1e-2


def test_a_weight_that_cannot_be_turned_keeps_its_norm(tmp_path: Path) -> None:
    model = normed(torch.tensor([-1.0, 1.0, 1.0, 1.0]), "w8a8")
    model.converted[0].quantized_weight[0, 0] = -128  # type: ignore[index]
    executorch_program.write(model, tmp_path / "model.pte")
    found = Agreement.of(read_program(tmp_path / "model.pte", trust=True), model.converted, model.example_args)
    assert found.largest_difference < 1e-2


class Residual(nn.Module):
    """A sum of two branches that a convolution quantizes, and that goes on beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 6, 1),
        )
        self.norms = nn.ModuleList([nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)])

    def forward(self, images: Tensor) -> Tensor:
        before = self.norms[0](self.first(images)).relu()
        after = (self.norms[1](self.second(before)) + before).relu()
        return (self.third(after).mean(1, keepdim=True) + after).mean((2, 3))


def test_residual_sums_between_norms(tmp_path: Path) -> None:
    model = made_of("w4a8", Residual(), (4, 8, 8))
    executorch_program.write(model, tmp_path / "model.pte")
    found = Agreement.of(read_program(tmp_path / "model.pte", trust=True), model.converted, model.example_args)
    assert found.largest_difference < 2e-2


def test_programs_without_quantized_layers_are_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    program = traced_program(module, (torch.randn(2, 3, 8, 8),))
    fold_batch_norms(program)
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)


def test_files_of_others_are_read_on_trust(file: tuple[Path, ModelToWrite], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^model\.pte: .* so it was not loaded \(--trust loads it\)$"):
        read_program(file[0])
    damaged = tmp_path / "damaged.pte"
    damaged.write_bytes(file[0].read_bytes()[:200])
    with pytest.raises(ConfigurationError, match=r"^damaged\.pte: ExecuTorch cannot read it: [^\n]+$"):
        read_program(damaged, trust=True)


def test_other_arguments_than_tensors(tmp_path: Path) -> None:
    model = ModelToWrite(made_of("w4a8").converted, (torch.randn(2, 1, 8, 8), 0.5), "Layers", "w4a8")
    with pytest.raises(ExportError, match=r"^Layers\.forward takes something else than tensors \(0\.5\)$"):
        executorch_program.write(model, tmp_path / "model.pte")


def test_the_terminal_stays_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    [told] = write_formats(["executorch"], made_of("w4a8", nn.Sequential(nn.Linear(8, 4)), (8,)), tmp_path)
    assert told.agreement is not None
    assert capfd.readouterr() == ("", "")


def test_what_to_install_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    [told] = write_formats(["executorch"], made_of("w4a8", nn.Sequential(nn.Linear(8, 4)), (8,)), tmp_path)
    assert told.reason == "model.pte takes executorch: pip install 'fedhq-lightning[executorch]'"
