"""Runs in which nobody waits, without what takes longest of a run."""

import pytest

from ...trainer.conftest import make_quick


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)
