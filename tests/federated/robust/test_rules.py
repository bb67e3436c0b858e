"""Each rule against its paper in plain numbers, and what each refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.robust import (
    Bulyan,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormClipping,
    RobustRule,
    TrimmedMean,
)

from . import references
from .references import Rows

Reference = Callable[[Rows, Rows], Rows]
RULES: dict[str, tuple[RobustRule, Reference]] = {
    "median": (CoordinateMedian(), lambda rows, _: references.median(rows)),
    "trimmed mean": (TrimmedMean(2), lambda rows, _: references.trimmed_mean(rows, 2)),
    "geometric median": (GeometricMedian(), references.geometric_median),
    "krum": (Krum(2), lambda rows, _: references.krum(rows, 2)),
    "multi-krum": (MultiKrum(2), lambda rows, _: references.krum(rows, 2, len(rows) - 4)),
    "multi-krum of three": (MultiKrum(2, 3), lambda rows, _: references.krum(rows, 2, 3)),
    "bulyan": (Bulyan(2), lambda rows, _: references.bulyan(rows, 2)),
    "norm clipping": (NormClipping(), references.norm_clipping),
}
WEIGHTED = ("geometric median", "norm clipping")


@dataclass(frozen=True)
class Whole:
    """A cohort of which everything lies in memory."""

    rows: Tensor
    examples: Tensor

    @property
    def num_updates(self) -> int:
        return len(self.rows)

    @property
    def products(self) -> Tensor:
        return self.rows @ self.rows.T


def combined(rule: RobustRule, rows: Tensor, examples: Tensor | None = None) -> Tensor:
    examples = torch.ones(len(rows), dtype=torch.float64) if examples is None else examples
    return rule.combine(Whole(rows, examples))(rows)


def updates(num_updates: int, num_hostile: int = 0, factor: float = 10.0, seed: int = 0) -> Tensor:
    """(num_updates, 60) around a common direction; the hostile ones, first, point the other way."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_updates, 60, generator=generator, dtype=torch.float64) + 1.0
    rows[:num_hostile] *= -factor
    return rows


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("num_updates", [11, 12, 15])
@pytest.mark.parametrize("num_hostile", [0, 2])
def test_is_what_the_paper_says(name: str, num_updates: int, num_hostile: int) -> None:
    rule, reference = RULES[name]
    rows, examples = updates(num_updates, num_hostile), torch.arange(1.0, num_updates + 1, dtype=torch.float64)
    expected = reference(rows.numpy(), examples.numpy())
    torch.testing.assert_close(combined(rule, rows, examples), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_examples_count_where_the_rule_says_so(name: str) -> None:
    rule, rows = RULES[name][0], updates(12)
    uneven = torch.arange(1.0, 13, dtype=torch.float64) ** 3
    changed = not torch.equal(combined(rule, rows), combined(rule, rows, uneven))
    assert changed == (name in WEIGHTED)


@pytest.mark.parametrize("name", [name for name in RULES if name != "norm clipping"])
@pytest.mark.parametrize("size", [1e3, 1e9, 1e18])
def test_what_two_of_twelve_send_moves_the_result_by_no_more_than_the_others_differ(name: str, size: float) -> None:
    rule, rows = RULES[name][0], updates(12)
    honest = rows[2:]
    rows[:2] = size
    found = combined(rule, rows)
    widest = max(float((one - other).norm()) for one in honest for other in honest)
    assert float((found - honest.mean(0)).norm()) < widest


def test_a_clipped_update_adds_no_more_than_the_usual_one() -> None:
    rows = updates(11)
    honest = combined(NormClipping(), rows)
    rows[0] = 1e18
    assert float((combined(NormClipping(), rows) - honest).norm()) < 3 * float(rows[1:].norm(dim=1).median()) / 11


@pytest.mark.parametrize("name", RULES)
def test_alike_updates_are_the_result(name: str) -> None:
    rows = updates(1).expand(12, -1).contiguous()
    torch.testing.assert_close(combined(RULES[name][0], rows), rows[0], rtol=1e-12, atol=1e-12)
    assert not combined(RULES[name][0], torch.zeros_like(rows)).any()


def test_of_two_alike_krum_takes_the_first() -> None:
    rows = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    assert combined(Krum(0), rows).item() == 1.0
    assert combined(Krum(0), rows.flip(0)).item() == -1.0


@pytest.mark.parametrize("make", [CoordinateMedian, NormClipping, GeometricMedian, lambda: TrimmedMean(0)])
def test_one_update_is_enough_where_nothing_else_is_said(make: Callable[[], RobustRule]) -> None:
    rows = updates(1)
    make().check_cohort(1)
    torch.testing.assert_close(combined(make(), rows), rows[0])


@pytest.mark.parametrize(
    ("rule", "fewest", "words"),
    [
        (TrimmedMean(4), 9, r"TrimmedMean takes 2 \* num_attackers \+ 1 = 9 updates or more, and a cohort has 8"),
        (Krum(4), 11, r"Krum takes 2 \* num_attackers \+ 3 = 11 updates"),
        (MultiKrum(4), 11, r"MultiKrum takes 2 \* num_attackers \+ 3 = 11 updates"),
        (MultiKrum(4, 8), 14, r"MultiKrum takes num_chosen \+ num_attackers \+ 2 = 14 updates"),
        (Bulyan(4), 19, r"Bulyan takes 4 \* num_attackers \+ 3 = 19 updates .* raise clients_per_round"),
    ],
)
def test_too_small_a_cohort_is_refused_with_the_numbers(rule: RobustRule, fewest: int, words: str) -> None:
    rule.check_cohort(fewest)
    with pytest.raises(ConfigurationError, match=words):
        rule.check_cohort(fewest - 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Krum(-1), "Krum: num_attackers -1: must be a whole number, 0 or more"),
        (lambda: TrimmedMean(0.2), "TrimmedMean: num_attackers 0.2"),  # type: ignore[arg-type]
        (lambda: Bulyan(True), "Bulyan: num_attackers True"),
        (lambda: MultiKrum(1, 0), "MultiKrum: num_chosen 0: must be a whole number, 1 or more, or null"),
        (lambda: GeometricMedian(smoothing=0), "GeometricMedian: smoothing 0: must be above 0"),
        (lambda: GeometricMedian(max_steps=0), "GeometricMedian: max_steps 0: must be a whole number, 1 or more"),
        (lambda: GeometricMedian(tolerance=float("nan")), "GeometricMedian: tolerance nan: must be 0 or more"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_the_geometric_median_is_where_the_sum_of_distances_is_smallest() -> None:
    rows = updates(12, num_hostile=3)
    found = combined(GeometricMedian(), rows)

    def total(point: Tensor) -> float:
        return float((rows - point).norm(dim=1).sum())

    generator = np.random.default_rng(0)
    for _ in range(200):
        assert total(found) <= total(found + torch.from_numpy(generator.normal(scale=0.01, size=60))) + 1e-9
