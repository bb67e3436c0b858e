"""What code sets for the whole process is put back."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.support.process_state import process_state_kept


def _state() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        os.getcwd(),
    )


@pytest.mark.parametrize(
    "deed",
    [
        lambda place: torch.set_num_threads(torch.get_num_threads() + 1),
        lambda place: torch.set_default_dtype(torch.float64),
        lambda place: torch.set_grad_enabled(False),
        lambda place: torch.use_deterministic_algorithms(True),
        lambda place: os.chdir(place.parent),
    ],
    ids=["threads", "dtype", "gradients", "algorithms", "directory"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_it_is_put_back(deed: Callable[[Path], object], fails: bool, tmp_path: Path) -> None:
    before = _state()

    def run() -> None:
        with process_state_kept():
            deed(tmp_path)
            assert _state() != before
            if fails:
                raise RuntimeError("boom")

    if fails:
        with pytest.raises(RuntimeError, match="boom"):
            run()
    else:
        run()
    assert _state() == before


def test_a_working_directory_that_is_gone_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    with process_state_kept():
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()
