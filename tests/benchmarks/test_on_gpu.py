"""The benchmark of steps on a GPU; where there is none, on one that claims to be (`tests/fake_gpu/`)."""

import pytest
import step_time
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_lanes_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--models", "mlp-128", "--lanes", "fp32", "ptq", "qat", "--rounds", "1", "--steps", "1", "--no-memory"]
    monkeypatch.setattr("sys.argv", ["step_time.py", "--accelerator", "cuda", *chosen, "--print-only"])
    monkeypatch.setattr(step_time, "BLOCK_SECONDS", 0.0)
    step_time.main()
    printed = capsys.readouterr()
    assert "did not run" not in printed.err
    assert f"GPU: {torch.cuda.get_device_name()}" in printed.out
    assert printed.out.count("\n| ") >= 4
