"""What these tests leave out where they are about something else."""

from typing import Any

import pytest

from fedhq_lightning.deploy import ExportError, model_folder
from fedhq_lightning.quantize import compilation


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in eager mode: the same bits, without a minute of compiling them for modules of two batches."""
    monkeypatch.setattr(compilation, "can_compile", lambda: False)


@pytest.fixture
def no_program(no_report: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `model.pt2` too: the deployed model is packed."""

    def left_out(*arguments: Any) -> None:
        raise ExportError("left out")

    monkeypatch.setattr(model_folder, "export_program", left_out)
