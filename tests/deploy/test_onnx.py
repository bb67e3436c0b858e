"""`model.onnx`: the integers of the converted module, packed, in onnxruntime."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from fedhq_lightning.deploy import onnx_program
from fedhq_lightning.deploy.export import ExportError
from fedhq_lightning.deploy.formats import read_program
from fedhq_lightning.deploy.model_to_write import ModelToWrite
from fedhq_lightning.deploy.onnx_model import OnnxModel
from fedhq_lightning.deploy.written_file import Agreement
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme, attach_ranges, convert

EXACT = ["w4a8", "w8a8", "w2a2", "w3a5"]
ROUNDED = ["w4", "w3a8-g2", "w2-g4"]


class Layers(nn.Module):
    """Every kind of layer, and nothing between them that rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 4, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 2, groups=4, padding=(1, 0), bias=False), nn.Conv2d(4, 4, 2, groups=2, stride=2),
            nn.Conv2d(4, 6, 2, padding="same", padding_mode="circular", dilation=2),
        )  # fmt: skip
        self.mix = nn.Conv1d(6, 8, 2, dilation=2, padding=1)
        self.middle, self.head = nn.Linear(4, 8), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.pad(self.mix(self.features(images).flatten(2)), (0, 4))[..., :4]
        return self.head(self.middle(x).relu().flatten(1))


def made_of(scheme: str, module: nn.Module | None = None, args: tuple[Any, ...] | None = None) -> ModelToWrite:
    torch.manual_seed(0)
    module = (Layers() if module is None else module).eval()
    grid = QuantScheme(scheme, edge_bits=None)
    for name in attach_ranges(module, grid):
        module.get_buffer(name).copy_(torch.tensor([-1.5, 2.0]))
    args = (torch.randn(16, 1, 8, 8),) if args is None else args
    return ModelToWrite(convert(module, grid), args, "Layers", scheme, {"val_accuracy": 0.75})


def written(model: ModelToWrite, path: Path) -> nn.Module:
    onnx_program.write(model, path)
    return read_program(path)


@pytest.mark.parametrize("scheme", EXACT)
def test_where_no_float_operation_lies_between_bits_are_the_same(scheme: str, tmp_path: Path) -> None:
    model = made_of(scheme)
    program = written(model, tmp_path / "model.onnx")
    assert Agreement.of(program, model.converted, model.example_args) == Agreement(16, 1.0, 1.0, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("scheme", ROUNDED)
def test_groups_and_weights_alone_differ_by_the_rounding_of_floats(scheme: str, tmp_path: Path) -> None:
    model = made_of(scheme)
    found = Agreement.of(written(model, tmp_path / "model.onnx"), model.converted, model.example_args)
    assert found.largest_difference < 2e-2 if "a" in scheme else found.largest_difference < 1e-6


@pytest.mark.parametrize("scheme", ["w4a8s", "w4a4s"])
def test_static_ranges(scheme: str, tmp_path: Path) -> None:
    model = made_of(scheme)
    found = Agreement.of(written(model, tmp_path / "model.onnx"), model.converted, model.example_args)
    assert found.largest_difference < 2e-2
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert ({"QuantizeLinear", "DequantizeLinear"} <= operators) == (scheme == "w4a8s")


def test_sums_that_float32_cannot_hold_are_taken_in_two_parts(tmp_path: Path) -> None:
    module = nn.Conv2d(600, 3, 3)
    nn.init.constant_(module.weight, 0.1)  # all integers at the end of their range
    module.weight.data[:, ::7] *= -0.3
    args = (torch.rand(4, 600, 4, 4) + 0.5,)
    model = made_of("w8a8", module, args)
    program = written(model, tmp_path / "model.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("Conv") == 2
    assert Agreement.of(program, model.converted, args).bit_equal == 1


def test_activations_at_the_edge_between_two_levels_are_rounded_alike(tmp_path: Path) -> None:
    """Dividing by the step, in place of multiplying by its reciprocal, would take some of them to the other one."""
    step = torch.rand(64, 1, generator=torch.Generator().manual_seed(3)) + 0.5
    x = torch.cat([torch.zeros(64, 1), 255 * step, (torch.arange(254) + 0.5) * step], dim=1)
    assert int(((x / step).round() != (x * (1 / step)).round()).sum()) > 100
    model = made_of("w8a8", nn.Linear(256, 4), (x,))
    assert Agreement.of(written(model, tmp_path / "model.onnx"), model.converted, (x,)).bit_equal == 1


@pytest.mark.parametrize("scheme", ["w4a8", "w4a8s", "w4", "w3a8-g2"])
def test_in_float_it_is_the_model_with_its_weights_on_the_grid(scheme: str) -> None:
    model = made_of(scheme)
    weights_alone = made_of(scheme.replace("a8s", "").replace("a8", ""))
    program = OnnxModel(onnx_program.in_float(model))
    assert Agreement.of(program, weights_alone.converted, model.example_args).largest_difference < 1e-6


def test_both_programs_are_of_one_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_of("w4a8", nn.Linear(4, 3), (torch.randn(2, 4),))
    onnx_program.write(model, tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_program, "traced_program", None)
    operators = {node.op_type for node in onnx.ModelProto.FromString(onnx_program.in_float(model)).graph.node}
    assert "MatMul" in operators
    assert "MatMulInteger" not in operators


class TestContent:
    def test_weights_take_their_bits(self, tmp_path: Path) -> None:
        sizes = {}
        for bits, kind in ((2, TensorProto.INT2), (3, TensorProto.INT4), (4, TensorProto.INT4), (8, TensorProto.INT8)):
            model = made_of(f"w{bits}a8", nn.Linear(1001, 3), (torch.randn(2, 1001),))
            onnx_program.write(model, tmp_path / "model.onnx")
            proto = onnx.load(tmp_path / "model.onnx")
            (weight,) = [each for each in proto.graph.initializer if list(each.dims) == [1001, 3]]
            assert (weight.data_type, len(weight.raw_data)) == (kind, -(-3003 * (4 if bits == 3 else bits) // 8))
            assert proto.opset_import[0].version == (25 if bits == 2 else 21)
            sizes[bits] = (tmp_path / "model.onnx").stat().st_size
        assert sizes[2] < sizes[3] == sizes[4] < sizes[8] < 3003 + 4000

    def test_it_tells_what_the_model_is_and_nothing_of_this_machine(self, tmp_path: Path) -> None:
        module = Layers()
        args = (torch.full((5, 1, 8, 8), 0.123456789),)
        written(made_of("w4a8", module, args), tmp_path / "model.onnx")
        content = (tmp_path / "model.onnx").read_bytes()
        assert torch.full((8,), 0.123456789).numpy().tobytes() not in content
        for word in (str(Path(__file__).parent), "site-packages", "Users", ".py"):
            assert word.encode() not in content
        session = onnxruntime.InferenceSession(content)
        assert session.get_modelmeta().custom_metadata_map == {
            "model": "Layers",
            "scheme": "w4a8",
            "metrics": '{"val_accuracy": 0.75}',
            "outputs": "tensor",
        }
        assert [(each.name, each.shape, each.type) for each in session.get_inputs()] == [
            ("images", ["batch", 1, 8, 8], "tensor(float)")
        ]
        assert [(each.name, each.shape) for each in session.get_outputs()] == [("output", ["batch", 3])]

    def test_the_same_model_is_the_same_file(self, tmp_path: Path) -> None:
        for name in ("a.onnx", "b.onnx"):
            onnx_program.write(made_of("w4a8"), tmp_path / name)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_usage_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = made_of("w4a8")
        onnx_program.write(model, tmp_path / "model.onnx")
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {"images": model.example_args[0].numpy()}
        exec(onnx_program.usage(model), names)
        assert np.array_equal(names["outputs"][0], model.converted(*model.example_args).numpy())


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, parts: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        scores = self.layer(parts["a"] + parts["b"])
        return {"scores": scores, "masked": scores * mask.unsqueeze(1)}


def test_arguments_and_outputs_by_name(tmp_path: Path) -> None:
    args = ({"a": torch.randn(6, 4), "b": torch.randn(6, 4)}, torch.randn(6))
    model = made_of("w4a8", Nested(), args)
    program = written(model, tmp_path / "model.onnx")
    found = program(*args)
    assert list(found) == ["scores", "masked"]
    assert torch.equal(found["masked"], model.converted(*args)["masked"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [each.name for each in session.get_inputs()] == ["parts_a", "parts_b", "mask"]
    with pytest.raises(ValueError, match=r"it takes 3 tensors \(parts_a, parts_b, mask\) and nothing else"):
        program(args[0], 2.0)


def test_hooks_of_layers_stay(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    module[0].register_forward_hook(lambda layer, args, output: output * 2)
    model = made_of("w4a8", module, (torch.randn(3, 4),))
    assert Agreement.of(written(model, tmp_path / "model.onnx"), model.converted, model.example_args).bit_equal == 1


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return self.layer(x) * factor if x.sum() > 0 else self.layer(-x)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((torch.randn(2, 4),), "Branching cannot be exported to ONNX: Could not guard on data-dependent"),
        ((torch.randn(2, 4), 0.5), r"Branching.forward takes something else than tensors \(0.5\)"),
    ],
)
def test_what_cannot_be_written_says_why_in_a_line(
    args: tuple[Any, ...], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        onnx_program.write(made_of("w4a8", Branching(), args), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


class TestFilesOfStrangers:
    @pytest.fixture
    def proto(self) -> onnx.ModelProto:
        weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
        node = helper.make_node("Add", ["x", "w"], ["y"])
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
        graph = helper.make_graph([node], "graph", [x], [y], [weight])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def read(self, proto: onnx.ModelProto, folder: Path, trust: bool = False) -> nn.Module:
        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        return read_program(folder / "model.onnx", trust)

    def test_one_with_tensors_and_operators_is_read(self, proto: onnx.ModelProto, tmp_path: Path) -> None:
        program = self.read(proto, tmp_path)
        assert torch.equal(program(torch.ones(3, 2)), torch.tensor([[2.0, 3.0]]).expand(3, 2))

    @pytest.mark.parametrize("depth", [0, 2])
    def test_tensors_in_other_files_are_refused(self, proto: onnx.ModelProto, depth: int, tmp_path: Path) -> None:
        graph = proto.graph
        for _ in range(depth):
            node = graph.node.add(op_type="If")
            graph = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
        tensor = graph.initializer.add(name="stolen", data_type=TensorProto.UINT8, dims=[100])
        tensor.external_data.add(key="location", value="../../../etc/passwd")
        with pytest.raises(ConfigurationError, match=r"model.onnx: .* a tensor in another file, 'stolen', so it"):
            self.read(proto, tmp_path)

    def test_operators_of_others_are_refused(self, proto: onnx.ModelProto, tmp_path: Path) -> None:
        proto.graph.node[0].domain = "com.evil"
        with pytest.raises(ConfigurationError, match=r"it has an operator of 'com\.evil', so it was not"):
            self.read(proto, tmp_path)
        with pytest.raises(ConfigurationError, match=r"model\.onnx: onnxruntime cannot read it: "):
            self.read(proto, tmp_path, trust=True)

    def test_damaged_ones_and_other_files_are_told(self, proto: onnx.ModelProto, tmp_path: Path) -> None:
        content = proto.SerializeToString()
        for bad in (content[:-20], b"no model", b""):
            (tmp_path / "model.onnx").write_bytes(bad)
            with pytest.raises(ConfigurationError, match=r"^model.onnx: (is damaged, or no|onnxruntime cannot read)"):
                read_program(tmp_path / "model.onnx")
        with pytest.raises(ConfigurationError, match=r"model\.txt is no file of \.pt2, \.onnx"):
            read_program(tmp_path / "model.txt")


def test_without_onnxruntime_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedhq_lightning.deploy import formats

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    (told,) = formats.write_formats(["onnx"], made_of("w4a8", nn.Linear(4, 3), (torch.randn(2, 4),)), tmp_path)
    assert told.reason == "model.onnx takes onnxscript: pip install 'fedhq-lightning[onnx]'"
    assert (told.bytes, told.agreement, list(tmp_path.iterdir())) == (None, None, [])


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedhq_lightning.deploy.formats import write_formats

    model = made_of("w4a8", nn.Linear(4, 3), (torch.randn(2, 4),))
    with torch.no_grad():
        model.converted.bias += 100
        monkeypatch.setattr(model.converted, "forward", lambda x: torch.zeros(len(x), 3) + 1)
    monkeypatch.setattr(onnx_program, "copy_without_trainer", lambda module: convert(nn.Linear(4, 3), QuantScheme()))
    (told,) = write_formats(["onnx"], model, tmp_path)
    assert "it computes something else: outputs differ by" in told.reason
    assert list(tmp_path.iterdir()) == []
