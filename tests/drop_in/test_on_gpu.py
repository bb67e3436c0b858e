"""Lanes in an ordinary Lightning script on a GPU; where there is none, on one that claims to be (`tests/fake_gpu/`)."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.callbacks import QuantizedTraining
from fedhq_lightning.drop_in.quantized_precision import QuantizedPrecision

from ..small_script import ScriptModule, fit, quantized

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def weights(callbacks: list[Any], **settings: Any) -> dict[str, torch.Tensor]:
    module = ScriptModule()
    trainer = fit(module, callbacks, accelerator="gpu", devices=1, **settings)
    assert trainer.strategy.root_device.type == "cuda"
    return module.state_dict()


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_callback_and_plugin_train_the_same_bits(mode: str) -> None:
    called, plugged = weights([quantized(mode)]), weights([], plugins=QuantizedPrecision(mode, "w4a8"))
    assert all(torch.equal(called[name], plugged[name]) for name in called)


def test_its_model_is_written(tmp_path: Path) -> None:
    callback = QuantizedTraining("qat", "w4a8", export=True)
    weights([callback], default_root_dir=tmp_path)
    assert list(tmp_path.rglob("model.pt2"))
