"""Where the deployed model goes, and what is in its folder."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from fedhq_lightning.drop_in.deployed_model import described_sizes, model_file, model_folder, write_model
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme

from ..small_script import NUM_FEATURES, ScriptModule

X = torch.ones(2, NUM_FEATURES)


def trainer_with(*loggers: Any) -> Any:
    return Mock(loggers=list(loggers), default_root_dir="root", strategy=Mock(broadcast=lambda value: value))


def test_folder_is_beside_checkpoints() -> None:
    assert model_folder(trainer_with()) == Path("root/model")
    assert model_folder(trainer_with(CSVLogger("logs", name="digits", version=3))) == Path(
        "logs/digits/version_3/model"
    )
    online = Mock(save_dir=None, version="ab12cd")
    online.name = "project"
    assert model_folder(trainer_with(online)) == Path("root/project/ab12cd/model")
    assert model_folder(trainer_with(online), "mine") == Path("mine")


def test_what_cannot_be_exported_is_packed() -> None:
    class Branching(ScriptModule):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) if x.sum() > 0 else self.net(-x)

    module = Branching()
    write_model(module, QuantScheme("w4a8"), Path("new/model"), (X,))
    assert model_file(Path("new/model")).name == "model.safetensors"
    written = load_file("new/model/weights.safetensors")
    assert all(torch.equal(written[name], value) for name, value in module.state_dict().items())


def test_sizes_are_those_of_the_files() -> None:
    write_model(ScriptModule(), QuantScheme("w4a8"), Path("model"), (X,))
    size = Path("model/model.pt2").stat().st_size
    assert described_sizes(Path("model")).startswith(f"model.pt2 of {size / 1000:.1f} kB (its weights in fp32: ")


def test_extra_state_is_left_out() -> None:
    class Counting(ScriptModule):
        def get_extra_state(self) -> Any:
            return {"seen": 3}

        def set_extra_state(self, state: Any) -> None: ...

    write_model(Counting(), QuantScheme("w4a8"), Path("model"), (X,))
    assert set(load_file("model/weights.safetensors")) == set(ScriptModule().state_dict())


def test_folder_that_cannot_be_written() -> None:
    Path("file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_model(ScriptModule(), QuantScheme("w4a8"), Path("file/model"), (X,))
