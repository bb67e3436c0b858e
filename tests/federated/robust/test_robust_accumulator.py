"""All updates of a round under a rule: in chunks, in any order, packed, on any number of processes the same bits."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fedhq_lightning.federated.robust import (
    Bulyan,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormClipping,
    RobustRule,
    TrimmedMean,
    kept_updates,
    robust_accumulator,
)
from fedhq_lightning.federated.robust.robust_accumulator import RobustAccumulator
from fedhq_lightning.federated.wire import Link, Uplink
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import StateDict

from ...small_federation import same_bits

RULES = (CoordinateMedian(), TrimmedMean(2), GeometricMedian(), Krum(2), MultiKrum(2), Bulyan(2), NormClipping())
STATE: StateDict = {
    "first.weight": torch.linspace(-1, 1, 16 * 24).reshape(16, 24),
    "first.bias": torch.linspace(-1, 1, 16),
    "last.weight": torch.linspace(1, -1, 5 * 16).reshape(5, 16).half(),
    "norm.running_var": torch.linspace(1, 900, 7),
}
PARAMETERS = frozenset(STATE) - {"norm.running_var"}
GRIDS = {"first.weight": LayerScheme(4, 8, 8), "last.weight": LayerScheme(3, 8, None)}
NUM_UPDATES = 12
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


class Several(Processes):
    """One of some processes whose words are known beforehand, in their order."""

    def __init__(self, rank: int, told: Sequence[Sequence[Any]]) -> None:
        super().__init__(None)
        self.rank, self.count = rank, len(told)
        self._told = [iter(each) for each in told]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        found = [next(each) for each in self._told]
        assert found[self.rank] == data
        return found


def link(uplink: Uplink, grids: dict[str, LayerScheme] | None = None) -> Link:
    return Link(STATE, GRIDS if grids is None else grids, uplink, "fp32")


def local_models() -> list[StateDict]:
    """Two of them far from the others."""
    generator = torch.Generator().manual_seed(3)
    models = []
    for number in range(NUM_UPDATES):
        size = -30.0 if number < 2 else 1.0
        models.append(
            {
                name: (value + size * 0.1 * (torch.randn(value.shape, generator=generator) + 0.5)).to(value.dtype)
                for name, value in STATE.items()
            }
        )
    return models


def updates(uplink: Uplink, grids: dict[str, LayerScheme] | None = None) -> list[Any]:
    """Opened payloads with their examples."""
    through = link(uplink, grids)
    return [
        (through.open(through.up(local, STATE, 1, number), 1, number), number + 1)
        for number, local in enumerate(local_models())
    ]


def bases(uplink: Uplink) -> StateDict | None:
    return STATE if uplink == "weights" else None


def combined(rule: RobustRule, added: Sequence[Any], uplink: Uplink = "delta") -> StateDict:
    accumulator = RobustAccumulator(rule, PARAMETERS, bases(uplink))
    for update, examples in added:
        accumulator.add(update, examples)
    found, total = accumulator.mean(Processes(None))
    assert total == sum(examples for _, examples in added)
    return found


@rules
def test_neither_order_nor_chunks_nor_files_change_a_bit(rule: RobustRule, monkeypatch: pytest.MonkeyPatch) -> None:
    added = updates("delta")
    expected = combined(rule, added)
    random.Random(1).shuffle(added)
    monkeypatch.setattr(kept_updates, "_MOST_IN_MEMORY", 2000)
    assert same_bits(combined(rule, added), expected)
    if isinstance(rule, CoordinateMedian | TrimmedMean):  # others add up chunks, and with them change the last bit
        monkeypatch.setattr(robust_accumulator, "_MOST_VALUES", 8 * NUM_UPDATES)
        assert same_bits(combined(rule, added), expected)


@rules
@pytest.mark.parametrize("uplink", ["weights", "delta"])
@pytest.mark.parametrize("grids", [GRIDS, {}], ids=["grids", "none"])
def test_each_kind_of_tensors_is_combined_by_itself(rule: RobustRule, uplink: Uplink, grids: Any) -> None:
    """In whole rows, without chunks or packing."""
    uplink = uplink if grids else "weights"
    added = updates(uplink, grids)
    found = combined(rule, added, uplink)
    decoded = [_decoded(update) for update, _ in added]
    for names in (["first.weight", "first.bias", "last.weight"], ["norm.running_var"]):
        base = torch.cat([STATE[name].reshape(-1).double() for name in names]) * (uplink == "weights")
        rows = torch.stack([torch.cat([each[name].reshape(-1).double() for name in names]) - base for each in decoded])
        cohort = _Whole(rows, torch.tensor([float(examples) for _, examples in added], dtype=torch.float64))
        expected = rule.combine(cohort)(rows) + base
        together = torch.cat([found[name].reshape(-1).double() for name in names])
        torch.testing.assert_close(together, expected, rtol=1e-6, atol=1e-6)
    assert {name: value.shape for name, value in found.items()} == {name: each.shape for name, each in STATE.items()}
    assert all(value.dtype == torch.float32 for value in found.values())


@rules
@pytest.mark.parametrize("uplink", ["weights", "delta"])
def test_two_far_away_do_not_show(rule: RobustRule, uplink: Uplink) -> None:
    """The mean itself moves by five times what an honest client does."""
    found = combined(rule, updates(uplink), uplink)
    for name, value in found.items():
        change = value - STATE[name] if uplink == "weights" else value
        assert -0.1 < float(change.mean()) < 0.2, name


@rules
@pytest.mark.parametrize("shares", [(12, 0), (0, 12), (5, 7), (1, 11)])
def test_processes_change_no_bit(rule: RobustRule, shares: tuple[int, int]) -> None:
    added = updates("delta")
    expected = combined(rule, added)
    parts = [added[: shares[0]], added[shares[0] :]]

    def accumulator(part: Sequence[Any]) -> RobustAccumulator:
        made = RobustAccumulator(rule, PARAMETERS)
        for update, examples in part:
            made.add(update, examples)
        return made

    told = [_said(accumulator(part), max(shares)) for part in parts]
    for rank, part in enumerate(parts):
        found, total = accumulator(part).mean(Several(rank, told))
        assert same_bits(found, expected)
        assert total == sum(examples for _, examples in added)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda update: {**update, "first.bias": torch.full((16,), float("nan"))}, "not finite"),
        (lambda update: {"first.bias": update["first.bias"]}, "unlike those of the first"),
        (lambda update: {**update, "first.bias": torch.zeros(15)}, "unlike those of the first"),
    ],
)
def test_what_cannot_be_combined_is_refused_whole(change: Any, words: str) -> None:
    (first, examples), (second, _), *_ = updates("delta")
    accumulator = RobustAccumulator(CoordinateMedian(), PARAMETERS)
    accumulator.add(first, examples)
    with pytest.raises(ValueError, match=words):
        accumulator.add(change(second), 1)
    found, total = accumulator.mean(Processes(None))
    assert total == examples
    torch.testing.assert_close(found["first.bias"], first["first.bias"])


def test_of_nothing_there_is_nothing() -> None:
    assert RobustAccumulator(CoordinateMedian(), PARAMETERS).mean(Processes(None)) == ({}, 0)


class _Whole:
    def __init__(self, rows: Tensor, examples: Tensor) -> None:
        self.num_updates, self.examples, self.products = len(rows), examples, rows @ rows.T


def _decoded(update: Any) -> dict[str, Tensor]:
    return {name: value if isinstance(value, Tensor) else value.decoded() for name, value in update.items()}


def _said(accumulator: RobustAccumulator, turns: int) -> list[bytes]:
    """What a process tells the others of its updates."""
    mine = accumulator._kept.in_order()
    head = json.dumps([accumulator._form, [examples for _, examples in mine]]).encode()
    return [head, *(bytes(data) for data, _ in mine), *[b""] * (turns - len(mine))]
