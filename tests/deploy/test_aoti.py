"""`model.aoti.pt2`: the program as machine code, with its bits."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedhq_lightning.deploy.aoti_program import CompiledModel
from fedhq_lightning.deploy.formats import read_program, write_formats
from fedhq_lightning.deploy.model_to_write import ModelToWrite
from fedhq_lightning.deploy.written_file import Agreement
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme, convert


def model(scheme: str = "w4a8") -> ModelToWrite:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 100), nn.ReLU(), nn.Linear(100, 3)
    )
    return ModelToWrite(convert(layers.eval(), QuantScheme(scheme)), (torch.randn(9, 1, 12, 12),), "Layers", scheme)


@pytest.mark.corner
def test_the_bits_of_the_converted_module(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = model()
    [told] = write_formats(["aoti"], given, tmp_path)
    assert told.reason == ""
    assert told.agreement == Agreement(9, 1.0, 1.0, 0.0)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ConfigurationError, match=r"^model\.aoti\.pt2: it is machine code, so it was not loaded"):
        read_program(tmp_path / "model.aoti.pt2")
    program = read_program(tmp_path / "model.aoti.pt2", trust=True)
    assert isinstance(program, CompiledModel)
    for samples in (1, 30):
        x = torch.randn(samples, 1, 12, 12)
        assert torch.equal(program(x), given.converted(x))


def test_without_a_compiler_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedhq_lightning.deploy.aoti_program.compiler", lambda: None)
    [told] = write_formats(["aoti"], model(), tmp_path)
    assert told.reason == "model.aoti.pt2 takes a C++ compiler, of which there is none (Debian: apt-get install g++)"
    assert not list(tmp_path.iterdir())


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "model.aoti.pt2").write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match=r"^model\.aoti\.pt2: torch cannot load it: [^\n]+$"):
        read_program(tmp_path / "model.aoti.pt2", trust=True)
