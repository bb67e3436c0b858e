import json
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import lightning as L
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fedhq_lightning.deploy.export import ExportError, export_program, load_packed, save_packed
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.conversion import convert
from fedhq_lightning.quantize.lanes import prepare
from fedhq_lightning.quantize.scheme import QuantScheme

SCHEMES = ["w4a8", "w2a2", "w4", "w3a8-g2"]


class Network(L.LightningModule):
    """A LightningModule with every kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 2, groups=2, stride=2), nn.Conv2d(4, 6, 2, padding="same", padding_mode="circular"),
        )  # fmt: skip
        self.mix = nn.Conv1d(6, 8, 2, dilation=2)
        self.middle, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.features(x).flatten(2))
        return self.head(self.middle(x.flatten(1)).relu())

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return self(batch).sum()


@pytest.fixture
def module() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(5, 1, 8, 8)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the network as each scheme has it, in a folder named by the scheme; examples of one value."""
    root = tmp_path_factory.mktemp("exported")
    for scheme in SCHEMES:
        torch.manual_seed(0)
        (root / scheme).mkdir()
        images = torch.full((5, 1, 8, 8), 0.123456789)
        export_program(convert(Network().eval(), QuantScheme(scheme)), (images,), root / scheme / "model.pt2")
    return root


@pytest.mark.parametrize("scheme", SCHEMES)
def test_exported_is_bitwise_the_converted_module(module: Network, images: Tensor, scheme: str, exported: Path) -> None:
    converted = convert(module, QuantScheme(scheme))
    loaded = torch.export.load(exported / scheme / "model.pt2").module()
    for batch in (images, images[:1], images[:2], torch.randn(64, 1, 8, 8)):
        assert torch.equal(loaded(batch), converted(batch))
    assert files_in(exported / scheme) == ["model.pt2"]


def test_a_fresh_process_needs_torch_only(module: Network, images: Tensor, tmp_path: Path) -> None:
    converted = convert(module, QuantScheme("w3a8-g2", overrides={"middle": "w4"}))
    export_program(converted, (images,), tmp_path / "model.pt2")
    safetensors.torch.save_file(
        {"images": images, "expected": converted(images).detach()}, tmp_path / "case.safetensors"
    )
    torch.save({"images": images, "expected": converted(images).detach()}, tmp_path / "case.pt")
    script = """
import sys
import torch

case = torch.load("case.pt", weights_only=True)
model = torch.export.load("model.pt2").module()
assert torch.equal(model(case["images"]), case["expected"])
assert torch.equal(model(case["images"][2:3]), case["expected"][2:3])
assert not {"torchao", "fedhq_lightning", "lightning"} & set(sys.modules), "more than torch"
"""
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", script], cwd=tmp_path, check=True)


@pytest.mark.corner
def test_an_example_of_one_sample_is_enough(module: Network, images: Tensor, tmp_path: Path) -> None:
    converted = convert(module, QuantScheme())
    export_program(converted, (images[:1],), tmp_path / "model.pt2")
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(images), converted(images))


def test_several_and_nested_arguments(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, parts: dict[str, Tensor], factor: float, mask: Tensor) -> dict[str, Tensor]:
            return {"out": self.layer(parts["a"] + parts["b"]) * factor * mask.unsqueeze(1)}

    converted = convert(Two(), QuantScheme())
    args = ({"a": torch.randn(6, 4), "b": torch.randn(6, 4)}, 0.5, torch.randn(6))
    export_program(converted, args, tmp_path / "model.pt2")
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(*args)["out"], converted(*args)["out"])


def test_the_file_holds_no_example_and_no_folder_names(exported: Path) -> None:
    with ZipFile(exported / "w4a8" / "model.pt2") as archive:
        content = b"".join(map(archive.read, archive.namelist()))
    assert torch.full((8,), 0.123456789).numpy().tobytes() not in content
    assert str(Path(__file__).parent).encode() not in content
    assert b"site-packages" not in content


def test_the_graph_is_compressed_and_the_weights_are_as_torch_wrote_them(exported: Path) -> None:
    """As torch writes it, a small model's file is several times its float32 weights."""
    path = exported / "w4a8" / "model.pt2"
    with ZipFile(path) as archive:
        kinds = {entry.filename.rpartition(".")[2] == "json": entry.compress_type for entry in archive.infolist()}
        written = sum(entry.file_size for entry in archive.infolist())
    assert kinds == {True: ZIP_DEFLATED, False: ZIP_STORED}
    assert path.stat().st_size < written / 3


def test_the_same_model_is_the_same_file(module: Network, exported: Path, tmp_path: Path) -> None:
    images = torch.full((5, 1, 8, 8), 0.123456789)
    export_program(convert(module, QuantScheme()), (images,), tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_bytes() == (exported / "w4a8" / "model.pt2").read_bytes()


class Branching(nn.Module):
    """Forward depends on values, which no exported program can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


class Talking(nn.Module):
    """Says something wherever its forward runs, before it branches or not."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.layer, self.branches = nn.Linear(4, 3), branches

    def forward(self, x: Tensor) -> Tensor:
        print("a print of the user's")
        print("another", file=sys.stderr)
        warnings.warn("a warning of the user's", stacklevel=1)
        y = self.layer(x)
        return -y if self.branches and y.sum() > 0 else y


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).view(2, 3)


@pytest.mark.parametrize("module", [Branching(), FixedBatch()], ids=lambda module: type(module).__name__)
def test_what_cannot_be_exported_says_why_in_a_line_and_leaves_no_file(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"{type(module).__name__} cannot be exported: \S.+") as caught:
        export_program(convert(module, QuantScheme()), (torch.randn(2, 4),), tmp_path / "model.pt2")
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("branches", [True, False])
def test_what_the_module_itself_says_while_it_is_traced_is_seen(
    branches: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = convert(Talking(branches), QuantScheme())
    refused = pytest.raises(ExportError, match="data-dependent") if branches else nullcontext()
    with pytest.warns(UserWarning, match="a warning of the user's") as said, refused:
        export_program(module, (torch.randn(2, 4),), tmp_path / "model.pt2")
    assert {str(each.message) for each in said} == {"a warning of the user's"}
    shown = capfd.readouterr()
    assert set(shown.out.splitlines()) == {"a print of the user's"}
    assert set(shown.err.splitlines()) == {"another"}, "and nothing of torch's"


def test_a_recurrent_layer_is_exported_without_remarks(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0])

    export_program(convert(Recurrent(), QuantScheme()), (torch.randn(2, 5, 4),), tmp_path / "model.pt2")


def test_a_program_that_differs_is_refused(tmp_path: Path) -> None:
    class Drifting(nn.Module):
        calls = 0.0

        def forward(self, x: Tensor) -> Tensor:
            Drifting.calls += 1
            return x + Drifting.calls

    with pytest.raises(ExportError, match="differs from the module on the example"):
        export_program(Drifting(), (torch.randn(2, 4),), tmp_path / "model.pt2")
    assert files_in(tmp_path) == []


def test_a_model_that_has_diverged_is_still_written(tmp_path: Path) -> None:
    module = nn.Linear(4, 3)
    nn.init.constant_(module.weight, float("nan"))
    export_program(convert(module, QuantScheme()), (torch.randn(2, 4),), tmp_path / "model.pt2")
    assert torch.export.load(tmp_path / "model.pt2").module()(torch.randn(2, 4)).isnan().all()


@pytest.mark.parametrize("args", [(), (torch.empty(0, 4),), (1.0,)])
def test_an_example_without_samples(args: tuple[Any, ...], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="at least one sample"):
        export_program(convert(nn.Linear(4, 3), QuantScheme()), args, tmp_path / "model.pt2")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_packed_files_round_trip(module: Network, images: Tensor, scheme: str, tmp_path: Path) -> None:
    converted = convert(module, QuantScheme(scheme))
    save_packed(converted, tmp_path / "model.safetensors")
    other = Network()
    loaded = load_packed(tmp_path / "model.safetensors", other)
    assert torch.equal(loaded(images), converted(images))
    assert type(other.middle) is nn.Linear
    assert not any(part.training for part in loaded.modules())
    assert files_in(tmp_path) == ["model.safetensors"]


def test_packed_files_load_into_any_lane(module: Network, images: Tensor, tmp_path: Path) -> None:
    scheme = QuantScheme()
    converted = convert(module, scheme)
    save_packed(converted, tmp_path / "model.safetensors")
    assert torch.equal(
        load_packed(tmp_path / "model.safetensors", prepare(Network(), "qat", scheme))(images), converted(images)
    )


def test_packed_bare_layer(tmp_path: Path) -> None:
    converted = convert(nn.Linear(4, 3), QuantScheme())
    save_packed(converted, tmp_path / "model.safetensors")
    x = torch.randn(2, 4)
    assert torch.equal(load_packed(tmp_path / "model.safetensors", nn.Linear(4, 3))(x), converted(x))


def test_packed_weights_take_their_bits(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100), nn.Linear(100, 100))
    save_packed(convert(module, QuantScheme("w3a8")), tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        sizes = [file.get_tensor(f"{i}.packed_weight").numel() for i in range(3)]
        layers = json.loads(file.metadata()["layers"])
    assert sizes == [10_000, 3_750, 10_000]
    assert layers["1"] == {"scheme": "w3a8", "shape": [100, 100]}


def test_nothing_converted_to_save(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no integer layer; convert it first"):
        save_packed(nn.Linear(4, 3), tmp_path / "model.safetensors")
    assert files_in(tmp_path) == []


def test_files_that_cannot_be_loaded(module: Network, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_packed(path, module)
    save_packed(convert(module, QuantScheme()), path)
    (tmp_path / "short").write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_packed(tmp_path / "short", module)
    with pytest.raises(ConfigurationError, match="was not made for this Linear"):
        load_packed(path, nn.Linear(4, 3))
    module.middle = nn.Linear(16, 9)
    with pytest.raises(ConfigurationError, match=r"was not made for this Network: layer 'middle' is a Linear of shape"):
        load_packed(path, module)
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(
        ConfigurationError, match=r"format None version None; this reads 'fedhq-packed-model' version 1"
    ):
        load_packed(tmp_path / "other", module)
