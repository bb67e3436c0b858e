"""`fedhq profile` on a GPU; where there is none, on one that claims to be (`tests/fake_gpu/`)."""

import pytest
import torch

from fedhq_lightning.cli.main import main
from fedhq_lightning.profiling import host_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_every_lane_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of this host, less than would show its peaks: what is tested is that everything is on one device."""
    monkeypatch.setitem(host_device._SIDE, "cuda", 64)
    monkeypatch.setitem(host_device._STREAM_VALUES, "cuda", 2**14)
    assert main(["profile", "digits-smoke", "--trainer.accelerator=gpu"]) == 0
    printed = capsys.readouterr().out
    assert torch.cuda.get_device_name() in printed
    assert all(lane in printed.lower() for lane in ("ptq", "qat", "fp"))
