"""The benchmark of risk against harm: its measuring on a small federation, and its tables."""

import numpy as np
import pytest
import torch
from risk_and_harm import CEILING, HARMS, Group, cell_table, examine, harm_table, overall_table

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.quantize import LaneOptions

from ..small_federation import SmallData, SmallModule, examples, trainer


def test_examine_measures_every_client_and_repeats() -> None:
    there = trainer(
        scheme="w2a8", lanes=LaneOptions(layer_kernels={"ptq": {"*": "int8"}}), callbacks=FixedAllocator("ptq")
    )
    inputs, labels = examples(50, 100).tensors
    state = SmallModule().state_dict()
    found = [examine(there, SmallModule(), SmallData(), state, 3, (inputs, labels)) for _ in range(2)]
    known, repeats = found[0]
    assert len(known) == 4 + 2 + 3 + 8
    assert {each.shape for each in (*known.values(), *repeats[0].values(), *repeats[1].values())} == {(4,)}
    assert all(np.isfinite(each).all() for each in known.values())
    np.testing.assert_array_equal(known["updates x sensitivity (loss)"], known["updates"] * known["sensitivity (loss)"])
    np.testing.assert_allclose(known["size"], np.array([20, 13, 8, 27]) / 17)
    assert all(repeats[0][harm].any() for harm in HARMS[::2]), "PTQ and QAT gave the same model"
    assert not np.array_equal(repeats[0][HARMS[0]], repeats[1][HARMS[0]])
    for name in known:
        np.testing.assert_array_equal(known[name], found[1][0][name])
    np.testing.assert_array_equal(repeats[0][HARMS[2]], found[1][1][0][HARMS[2]])
    assert torch.equal(next(iter(state.values())), next(iter(SmallModule().state_dict().values())))


def group(alpha: float, sign: float) -> Group:
    x = np.arange(10.0)
    return Group("w3a8", alpha, {"known": x, "same for all": np.ones(10)}, [dict.fromkeys(HARMS, sign * x)] * 2)


def test_tables() -> None:
    groups = [group(0.3, 1.0), group(5.0, -1.0), group(5.0, -1.0)]
    lines = overall_table(groups, 100).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| known", "| same for all", f"| {CEILING}"]
    assert lines[2].startswith("| known | -0.33 [-0.33, -0.33] |")
    assert lines[3] == "| same for all | - | - | - | - |"
    assert "+1.00 [+1.00, +1.00]" in lines[4]
    lines = cell_table(groups, HARMS[0], 100).splitlines()
    assert lines[0] == "| known before | w3a8, alpha 0.3 | w3a8, alpha 5 |"
    assert lines[2] == "| known | +1.00 [+1.00, +1.00] | -1.00 [-1.00, -1.00] |"
    assert harm_table(groups).splitlines()[3].startswith("| w3a8, alpha 5 | 20 | -4.500 [-9.000, +0.000] | -4.5 [")


def test_harm_is_the_mean_of_both_fits() -> None:
    both = Group("w3a8", 0.3, {}, [dict.fromkeys(HARMS, np.full(3, value)) for value in (1.0, 2.0)])
    assert both.harm[HARMS[1]] == pytest.approx(np.full(3, 1.5))
