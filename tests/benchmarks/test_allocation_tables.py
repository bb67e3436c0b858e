"""Several settings together: a seed counts once."""

import math

import allocation_tables
import pytest

from fedhq_lightning.experiments.comparison import Kept
from fedhq_lightning.experiments.outcomes import Outcome, outcomes

from ..experiments.made_cells import made_cell


def setting(gains: dict[int, float], seconds: float = 10.0) -> list[Outcome]:
    """PTQ at 0.5 throughout, the hybrid better by the seed's gain in as long rounds, QAT at 0.6 in 20 seconds each."""
    cells = []
    for seed, gain in gains.items():
        cells.append(made_cell("all-ptq", seed, 10.0, [0.1, *[0.5] * 3]))
        cells.append(made_cell("hybrid", seed, seconds, [0.1, *[0.5 + gain] * 3]))
        cells.append(made_cell("all-qat", seed, 20.0, [0.1, *[0.6] * 3]))
    return outcomes(cells)


def test_pools_are_named_once():
    found = {name: [] for name in ("w4a8-0.3", "w2a8-0.3", "w2a8-0.05")}
    assert list(allocation_tables.with_pools(found)) == [*found, "*all*", "*3 and 2 bits*"]
    assert list(allocation_tables.with_pools({"w4a8-0.3": []})) == ["w4a8-0.3"]


def test_one_seed_has_no_deviation():
    found = {"one": setting({0: 0.1}), "two": setting({0: 0.1, 1: 0.3})}
    *_, one, two = allocation_tables.spread_table(found, lambda each: 100 * each.metric, ["hybrid", "coarse"]).split(
        "\n"
    )
    assert (one, two) == ("| one | 60.0 |  |", "| two | 70.0 ± 14.1 |  |")


def test_wall_seconds_are_of_whole_runs_and_of_their_fits():
    cells = [made_cell("hybrid", seed, seconds, [0.1, 0.2, 0.3]) for seed, seconds in ((0, 10.0), (1, 30.0))]
    kept = {"one": Kept(cells, [])}
    *_, whole, fits = allocation_tables.wall_table(kept, ["hybrid", "coarse"]).split("\n")
    assert whole == "| one, whole runs | 4.0 ± 2.8 |  |"
    assert fits == "| one, local fits | 2.0 ± 1.4 |  |"


def test_a_difference_has_one_value_a_seed():
    settings = [setting({0: 0.1, 1: 0.2, 2: 0.3, 3: 0.9}), setting({0: 0.3, 1: 0.2, 2: 0.1})]
    found = allocation_tables.difference(settings, "hybrid", "all-ptq", lambda each: each.metric)
    assert found.count == 3, "seed 3 is not in both"
    assert found.mean == pytest.approx(0.2)
    assert found.deviation == pytest.approx(0), "each seed's mean over the settings is the same"
    assert allocation_tables.difference(settings, "hybrid", "coarse", lambda each: each.metric).count == 0


def test_a_ratio_has_one_value_a_seed_and_counts_pairs():
    settings = [setting({0: 0.2, 1: 0.2, 2: 0.0}), setting({0: 0.2, 1: 0.2}, seconds=5.0)]
    found = allocation_tables.ratio(settings, "hybrid", "all-qat", "virtual")
    assert (found.count, found.first_censored, found.second_censored) == (4, 1, 0)
    # Half the time in one setting, a quarter in the other.
    assert found.mean == pytest.approx(math.sqrt(1 / 2 * 1 / 4))
    assert math.isnan(found.low), "two seeds"
    assert allocation_tables.ratio(settings, "hybrid", "coarse", "virtual") is None
