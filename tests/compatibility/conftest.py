"""What these tests leave out where they are about something else."""

import pytest

from fedhq_lightning.quantize import compilation


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in eager mode: the same bits, without a minute of compiling them for modules of two batches."""
    monkeypatch.setattr(compilation, "can_compile", lambda: False)
