"""Which process prints and writes, before and after Lightning is imported."""

import sys
from types import SimpleNamespace

import pytest

from fedhq_lightning.support.first_process import is_first_process

LIGHTNINGS = "lightning.fabric.utilities.rank_zero"


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"LOCAL_RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1"}, False),
    ],
)
def test_by_the_environment_before_lightning_is_imported(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], is_first: bool
) -> None:
    monkeypatch.delitem(sys.modules, LIGHTNINGS, raising=False)
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == is_first


@pytest.mark.parametrize("rank", [0, 4])
def test_by_lightnings_word_once_it_is_known(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The second node's processes are told their ranks by the strategy alone."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setitem(sys.modules, LIGHTNINGS, SimpleNamespace(rank_zero_only=SimpleNamespace(rank=rank)))  # type: ignore[arg-type]  # a stand-in
    assert is_first_process() == (rank == 0)
