"""From cells to outcomes, rows, tables and pictures, with numbers worked out by hand."""

import csv
import io
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from fedhq_lightning.experiments.cells import Cell
from fedhq_lightning.experiments.outcomes import default_baseline, outcomes, rows_of, straggler_bound
from fedhq_lightning.experiments.side_by_side_figures import curves_svg, time_to_target_svg
from fedhq_lightning.experiments.side_by_side_tables import all_tables, cells_csv, markdown
from fedhq_lightning.experiments.statistics import Duration

from .made_cells import made_cell

PTQ = made_cell("all-ptq", 0, 10.0, [0.1, 0.3, 0.5, 0.7, 0.6])
QAT = made_cell("all-qat", 0, 15.0, [0.1, 0.5, 0.7, 0.9, 0.8])
PTQ_1 = made_cell("all-ptq", 1, 20.0, [0.1, 0.3, 0.5, 0.7, 0.9])
QAT_1 = made_cell("all-qat", 1, 40.0, [0.1, 0.2, 0.3, 0.4, 0.5])
CELLS = [PTQ, PTQ_1, QAT, QAT_1]


def test_outcomes_by_hand():
    ptq, ptq_1, qat, qat_1 = outcomes(CELLS)
    # The shortest run of seed 0 takes 40 virtual seconds; QAT has then finished two rounds.
    assert ptq.at_seconds == qat.at_seconds == 40.0
    assert ptq.metric_at == ptq.metric == pytest.approx(0.6)
    assert qat.metric_at == pytest.approx(0.6)
    assert qat.metric == pytest.approx(0.8)
    assert qat.metric_fp == pytest.approx(0.81)
    # Each seed has its own target: QAT's last three, less half a point.
    assert ptq.target == qat.target == pytest.approx(0.795)
    assert ptq_1.target == qat_1.target == pytest.approx(0.395)
    # PTQ ends at 0.6. QAT's means are 0.7 after the third round and 0.8 after the fourth.
    assert ptq.virtual_to_target == Duration(40.0, is_censored=True)
    assert qat.virtual_to_target == Duration(60.0)
    assert qat.wall_to_target == Duration(6.0)
    assert ptq_1.virtual_to_target == Duration(60.0)
    assert (ptq.qat_share, qat.qat_share) == (0.0, 1.0)


def test_given_time_and_target():
    ptq, qat = outcomes([PTQ, QAT], at=30.0, target=0.65)
    assert ptq.metric_at == pytest.approx(0.5)
    assert qat.metric_at == pytest.approx(0.6)
    assert ptq.virtual_to_target == Duration(40.0, is_censored=True)
    assert qat.virtual_to_target == Duration(45.0)


def test_what_users_have_today_sets_the_target():
    fake = made_cell("all-qat-fake", 0, 30.0, [0.1, 0.4, 0.4, 0.4])
    assert [each.target for each in outcomes([QAT, fake])] == [pytest.approx(0.395)] * 2
    assert outcomes([PTQ])[0].target is None
    assert outcomes([PTQ])[0].virtual_to_target is None


def test_losses_are_better_when_smaller():
    cells = [
        made_cell("all-qat", 0, 1.0, [9.0, 3.0, 2.0, 1.0], larger_is_better=False),
        made_cell("all-ptq", 0, 1.0, [9.0, 3.0, 2.0, 1.01], larger_is_better=False),
    ]
    qat, ptq = outcomes(cells)
    assert qat.target == pytest.approx(2.005)
    assert ptq.virtual_to_target == Duration(3.0)


def test_rounds_without_evaluation_are_left_out():
    found = outcomes([made_cell("all-qat", 0, 1.0, [0.1, None, 0.3, None, 0.5])])[0]
    assert found.metric == pytest.approx(0.4)
    assert found.virtual_to_target == Duration(4.0)


def test_rows_are_paired_by_seed():
    lonely = made_cell("free-qat", 1, 5.0, [0.1, 0.4, 0.4, 0.4])
    rows = {row.name: row for row in rows_of(outcomes([*CELLS, lonely], at=40.0), "all-ptq")}
    qat = rows["all-qat"]
    # At 40 s: QAT 0.6 and 0.2, PTQ 0.6 and 0.4.
    assert qat.metric_at_difference.mean == pytest.approx(-0.1)
    assert qat.metric_at_difference.count == 2
    # Seed 0: PTQ never gets there; seed 1: 160 over 60, the means of QAT being 0.3 and 0.4.
    assert qat.virtual_ratio.mean == pytest.approx(160 / 60)
    assert (qat.virtual_ratio.count, qat.virtual_ratio.second_censored) == (1, 1)
    assert rows["free-qat"].seeds == [1]
    assert rows["free-qat"].metric_difference.count == 1
    assert rows["free-qat"].metric_difference.mean == pytest.approx(-0.3)


def test_bound_is_the_stragglers():
    assert straggler_bound(CELLS).mean == pytest.approx((15 / 10 + 40 / 20) / 2)
    assert straggler_bound([PTQ, QAT_1]) is None
    fake = made_cell("all-qat-fake", 0, 30.0, [0.1, 0.5, 0.7, 0.9, 0.8])
    assert straggler_bound([PTQ, fake]).mean == pytest.approx(3)
    assert straggler_bound([PTQ, QAT, fake]).mean == pytest.approx(1.5)
    assert straggler_bound([PTQ, QAT, fake], ["all-qat-fake"]).mean == pytest.approx(3)


def test_default_baseline():
    assert default_baseline(["hybrid", "all-qat", "all-ptq"]) == "all-ptq"
    assert default_baseline(["hybrid", "all-qat"]) == "all-qat"
    assert default_baseline(["hybrid", "free-qat"]) == "hybrid"


def test_tables_say_what_was_not_reached():
    rows = rows_of(outcomes(CELLS), "all-ptq")
    _, quality, end, virtual, wall = all_tables(rows, "val_accuracy", "val_accuracy", "all-ptq")
    assert [row[0] for row in quality.rows] == ["all-ptq", "all-qat"]
    assert end.rows[1][2] == "0.6000 ± 0.2828"
    assert virtual.rows[0][1] == "> 50 (1 of 2)"
    assert wall.rows[0][1] == "> 5 (1 of 2)"
    assert virtual.rows[1][2] == "2.67 (1 of 2)"
    lines = markdown(virtual).splitlines()
    assert lines[0] == "Virtual seconds to target."
    assert {line.count("|") for line in lines[2:]} == {6}


def deployed(cell: Cell, validated: float, **test_metrics: float) -> Cell:
    summary = {"metric_quantized": validated, "metric_fp": 0.9, "test_metrics": test_metrics or None}
    return replace(cell, summary=dict(cell.summary) | summary)


def test_deployed_models_are_told_by_the_test_data():
    on_test = {"quantized/test_accuracy": 0.5, "fp/test_accuracy": 0.75}
    cells = [deployed(PTQ, 0.6, **on_test), deployed(QAT, 0.7, **(on_test | {"quantized/test_accuracy": 0.625}))]
    found = outcomes(cells)
    assert [each.deployed_on for each in found] == ["test_accuracy"] * 2
    assert [each.validated for each in found] == [0.6, 0.7]
    table = all_tables(rows_of(found, "all-ptq"), "test_accuracy", "val_accuracy", "all-ptq")[0]
    assert table.title == "Deployed models: test_accuracy of the round that val_accuracy chose"
    assert table.rows == [
        ["all-ptq", "0%", "0.5000", "baseline", "0.7500", "40", "4"],
        ["all-qat", "100%", "0.6250", "+0.1250", "0.7500", "60", "6"],
    ]


def test_test_data_of_some_cells_are_not_compared_with_validation_of_others():
    found = outcomes([deployed(PTQ, 0.6), deployed(QAT, 0.7, **{"quantized/test_accuracy": 0.625})])
    assert [(each.deployed_on, each.deployed) for each in found] == [("val_accuracy", 0.6), ("val_accuracy", 0.7)]


def test_deployed_models_are_told_by_validation_where_there_are_no_test_data():
    (found,) = outcomes([deployed(PTQ, 0.6)])
    assert (found.deployed_on, found.deployed, found.deployed_fp) == ("val_accuracy", 0.6, 0.9)


def test_csv_has_a_line_a_cell():
    rows = list(csv.DictReader(io.StringIO(cells_csv(outcomes(CELLS)))))
    assert [(row["allocator"], row["seed"]) for row in rows] == [(cell.allocator, str(cell.seed)) for cell in CELLS]
    assert rows[0]["virtual_to_target_seconds"] == "40.0"
    assert rows[0]["virtual_to_target_is_censored"] == "True"


def test_pictures_are_svg_and_repeat():
    first, again = curves_svg(CELLS), curves_svg(CELLS)
    assert first == again
    assert ET.fromstring(first).tag.endswith("svg")
    for name in ("all-ptq", "all-qat", "quantized val_accuracy", "virtual time"):
        assert name in first
    times = time_to_target_svg(outcomes(CELLS))
    assert ET.fromstring(times).tag.endswith("svg")
    assert time_to_target_svg(outcomes([PTQ])) == ""


def test_a_metric_that_is_not_a_number_does_not_stop_the_comparison():
    broken = made_cell("all-qat", 0, 10.0, [0.1, math.nan, math.nan, math.nan])
    rows = rows_of(outcomes([PTQ, broken]), "all-ptq")
    assert all_tables(rows, "val_accuracy", "val_accuracy", "all-ptq")[1].rows[1][2] == "-"
    assert "svg" in curves_svg([PTQ, broken])
