"""Ratios, targets and tables of the step benchmark."""

import pytest
from step_statistics import (
    TARGETS,
    LaneResult,
    Target,
    lane_table,
    speed_ratio,
    target_rows,
    target_table,
)

TITLES = {name: name for name in ("fp32", "bf16", "ptq", "qat", "qat-fake", "torchao-qat")}


def test_speed_is_compared_within_rounds() -> None:
    # The second round ran on a machine half as fast.
    ratio = speed_ratio(LaneResult([1.0, 2.0, 1.0]), LaneResult([4.0, 8.0, 5.0]))
    assert (ratio.value, ratio.smallest, ratio.largest) == (4.0, 4.0, 5.0)
    assert str(ratio) == "4.00x [4.00, 5.00]"


def test_rounds_must_pair() -> None:
    with pytest.raises(ValueError, match=r"argument 2 is longer"):
        speed_ratio(LaneResult([1.0]), LaneResult([1.0, 2.0]))


def test_lane_table() -> None:
    result = {
        "fp32": LaneResult([0.02, 0.04, 0.03], 0.5, 2_000_000),
        "ptq": LaneResult([0.01, 0.02, 0.01], 12.0, 1_500_000),
        "qat": LaneResult([0.06, 0.06, 0.06], 1.0, None),
        "bf16": LaneResult(error="RuntimeError: no"),
    }
    lines = lane_table(result, TITLES).splitlines()
    assert lines[2] == "| fp32 | 30.00 | 1.00x [1.00, 1.00] | 0.5 | 2.0 | 1.00x |"
    assert lines[3] == "| ptq | 10.00 | 2.00x [2.00, 3.00] | 12.0 | 1.5 | 0.75x |"
    assert lines[4] == "| qat | 60.00 | 0.50x [0.33, 0.67] | 1.0 |  |  |"
    assert lines[5] == "| bf16 | did not run |  |  |  |  |"
    assert lines[-1] == "bf16 did not run: RuntimeError: no"


def test_lane_table_without_the_baseline() -> None:
    assert "| ptq | 10.00 |  | 0.0 | 2.0 |  |" in lane_table({"ptq": LaneResult([0.01], 0.0, 2_000_000)}, TITLES)


@pytest.mark.parametrize(("bound", "verdict"), [(3.0, "met"), (3.01, "**missed**")])
def test_speed_target(bound: float, verdict: str) -> None:
    result = {"fp32": LaneResult([3.0]), "ptq": LaneResult([1.0])}
    rows = target_rows("net", result, [Target("ptq", "speed", ("fp32",), bound)], TITLES)
    assert rows == [["net", "ptq, speed against fp32", f">= {bound:g}x", "3.00x [3.00, 3.00]", verdict]]


@pytest.mark.parametrize(("bound", "verdict"), [(0.75, "met"), (0.74, "**missed**")])
def test_memory_target(bound: float, verdict: str) -> None:
    result = {"fp32": LaneResult([1.0], 0.0, 400), "qat": LaneResult([1.0], 0.0, 300)}
    [row] = target_rows("net", result, [Target("qat", "memory", ("fp32",), bound)], TITLES)
    assert row[2:] == [f"<= {bound:g}x", "0.75x", verdict]


def test_the_first_baseline_that_was_chosen_counts() -> None:
    target = Target("qat", "speed", ("torchao-qat", "qat-fake"), 2.0)
    result = {"qat": LaneResult([1.0]), "qat-fake": LaneResult([2.0])}
    assert target_rows("net", result, [target], TITLES)[0][1] == "qat, speed against qat-fake"
    result["torchao-qat"] = LaneResult([1.0])
    assert target_rows("net", result, [target], TITLES)[0][1] == "qat, speed against torchao-qat"


def test_a_failure_is_a_miss_and_what_nobody_chose_is_nothing() -> None:
    target = Target("ptq", "speed", ("fp32",), 1.0)
    failed = {"fp32": LaneResult([1.0]), "ptq": LaneResult(error="RuntimeError: no")}
    assert target_rows("net", failed, [target], TITLES)[0][3:] == ["did not run", "**missed**"]
    assert target_rows("net", {"fp32": LaneResult([1.0])}, [target], TITLES) == []
    assert target_rows("net", {"ptq": LaneResult([1.0])}, [target], TITLES) == []
    memory = Target("ptq", "memory", ("fp32",), 1.0)
    without = {"fp32": LaneResult([1.0]), "ptq": LaneResult([1.0])}
    assert target_rows("net", without, [memory], TITLES) == []
    without["fp32"].peak_bytes = 5
    assert target_rows("net", without, [memory], TITLES)[0][3:] == ["not measured", "**missed**"]


def test_target_table_counts() -> None:
    rows = [["a", "b", ">= 1x", "2x", "met"], ["a", "b", ">= 1x", "0x", "**missed**"]]
    assert target_table(rows).startswith("1 of 2 met.\n\n| model |")


def test_every_target_is_of_a_model_and_of_lanes_that_are_measured() -> None:
    from step_cases import LANES, MODELS, lanes_for

    assert set(TARGETS) == set(MODELS)
    for name, model in MODELS.items():
        measured = lanes_for(model)
        for target in TARGETS[name]:
            assert target.lane in measured
            assert set(target.baselines) <= set(LANES)
            assert set(target.baselines) & set(measured)
