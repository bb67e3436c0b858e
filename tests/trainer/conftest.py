"""What tests of whole runs share."""

from typing import Any

import pytest

from fedhq_lightning.deploy import ExportError, model_folder

from ..no_report import leave_out_report


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the two parts that take longest, where a test is about something else."""
    make_quick(monkeypatch)


def make_quick(patch: pytest.MonkeyPatch) -> None:
    """The same for fixtures of a wider scope."""

    def left_out(*arguments: Any) -> None:
        raise ExportError("left out")

    patch.setattr(model_folder, "export_program", left_out)
    leave_out_report(patch)
