"""Secure rounds on two processes, and interrupted and resumed: bitwise those of one process."""

from pathlib import Path

import pytest

from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory

from ..small_federation import same_bits
from ..three_ways import run_three_ways

# One client misses the deadline: its masks are taken off with the help of those that stay.
CHANGES = {
    "trainer.secure_aggregation": {"class_path": "SecureAggregation", "init_args": {"threshold": 0.6}},
    "trainer.max_norm_ratio": None,
    "trainer.clients_per_round": 4,
    "trainer.local_steps": None,
    "trainer.local_epochs": 1,
    "trainer.round_deadline": 0.039,
    "trainer.final_evaluation": False,
    "trainer.enable_progress_bar": False,
    "trainer.export": [],
}


def test_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = run_three_ways(tmp_path, CHANGES, monkeypatch)
    states = [load_checkpoint(RunDirectory.of_checkpoint(run)[1])["state"]["global_state"] for run in runs]
    whole, *others = (RunDirectory(run).read_rounds() for run in runs)
    assert {"ok", "late"} == {client.status for record in whole for client in record.clients}
    assert all(same_bits(state, states[0]) for state in states)
    for records in others:
        for mine, theirs in zip(whole, records, strict=True):
            assert mine.metrics == theirs.metrics
            for one, other in zip(mine.clients, theirs.clients, strict=True):
                assert (one.uplink_bytes, one.downlink_bytes) == (other.uplink_bytes, other.downlink_bytes)
