"""Payloads that wait come back as they were, from memory and from the file."""

from pathlib import Path

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import held_updates
from fedhq_lightning.federated.held_updates import HeldUpdate, HeldUpdates
from fedhq_lightning.federated.update_checks import Norms


@pytest.mark.parametrize("in_memory", [0, 10, 35, 1000])
def test_they_come_back(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_updates, "_MOST_IN_MEMORY", in_memory)
    held, given = HeldUpdates(), [bytes([number]) * (number + 3) for number in range(9)]
    for number, payload in enumerate(given):
        held.add(HeldUpdate(number, 10 * number, Norms(number, 0.0)), payload)
    got = list(held.take())
    assert [payload for _, payload in got] == given
    assert [(each.client_id, each.num_examples, each.norms.parameters) for each, _ in got] == [
        (number, 10 * number, number) for number in range(9)
    ]
    assert list(HeldUpdates().take()) == []


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_updates, "_MOST_IN_MEMORY", 0)
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(held_updates.tempfile, "TemporaryFile", lambda: full)
        with pytest.raises(ConfigurationError, match=r"cannot be written \(No space left on device"):
            HeldUpdates().add(HeldUpdate("a", 1, Norms(1.0, 0.0)), b"payload")
