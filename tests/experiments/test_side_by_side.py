"""Runs and allocators side by side: their lines, their totals, and the page of a comparison."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fedhq_lightning.experiments.comparison import Kept
from fedhq_lightning.experiments.run_comparison import write_results
from fedhq_lightning.experiments.side_by_side import Line, entries_of, runs_side_by_side
from fedhq_lightning.experiments.side_by_side_figures import curves_svg
from fedhq_lightning.experiments.statistics import value_at
from fedhq_lightning.report.picture_style import RUN_COLOURS
from fedhq_lightning.run.run import Run, curve

from ..report.test_report import Page, svgs, texts
from ..small_run import small_rounds, write_run
from .made_cells import deployed, made_cell

CELLS = [
    made_cell("all-ptq", 0, 10.0, [0.1, 0.5, 0.7, 0.6]),
    made_cell("all-ptq", 1, 10.0, [0.1, 0.3, None, 0.8]),
    made_cell("all-qat", 0, 20.0, [0.1, 0.4, 0.8, 0.9]),
]


def test_a_run_is_shown_as_it_was(tmp_path: Path) -> None:
    runs = [Run(write_run(tmp_path / name, small_rounds(seed=seed))) for name, seed in (("one", 1), ("two", 2))]
    first, second = runs_side_by_side(runs).entries()
    assert (first.label, second.short) == ("A: one", "B")
    line = first.line("virtual")
    assert line.quantized == curve(runs[0].columns(), "virtual")
    assert line.fp == curve(runs[0].columns(), "virtual", "metric_fp")
    assert (line.is_mean, line.band) == (False, None)
    assert first.mode_counts == runs[0].summary["mode_counts"]
    assert first.total("uplink_bytes") == runs[0].summary["uplink_bytes"]


def test_an_allocator_is_shown_by_means_over_its_seeds() -> None:
    ptq, qat = entries_of(CELLS)
    line = ptq.line("virtual")
    times, means = line.quantized
    assert (times[0], times[-1]) == (0.0, 30.0)
    values = [value_at(*cell.curve("virtual"), 15.0) for cell in CELLS[:2]]
    assert values == [0.5, 0.3]
    at = times.index(15.0)
    assert line.band is not None
    assert (line.band[0][at], means[at], line.band[1][at]) == (0.3, pytest.approx(0.4), 0.5)
    assert qat.line("wall").band is None
    assert ptq.line("wall").end == 3.0
    assert ptq.mode_counts == {"fp": 0, "ptq": 6, "qat": 0}
    assert ptq.total("virtual_seconds") == 30.0


def test_means_over_rounds_end_with_the_shortest_run() -> None:
    short = made_cell("all-ptq", 2, 10.0, [0.1, 0.2])
    (ptq,) = entries_of([*CELLS[:2], short])
    rounds, means = ptq.line("round").quantized
    assert rounds == [0.0, 1.0]
    assert means[1] == pytest.approx((0.5 + 0.3 + 0.2) / 3)


def test_lines_on_top_of_each_other_can_be_told_apart(tmp_path: Path) -> None:
    cells = [replace(CELLS[0], setting=f"lr=0.{number}", allocator="") for number in range(1, 6)]
    svg = curves_svg(cells)
    lines = [part for part in re.findall(r'<path [^>]*style="([^"]*)"', svg) if "fill: none" in part]
    drawn = [dict(re.findall(r"([\w-]+): ([^;]+)", style)) for style in lines]
    own = {(each.get("stroke"), each.get("stroke-width"), each.get("stroke-dasharray")) for each in drawn}
    widths = {float(width) for _, width, _ in own if width}
    assert len({stroke for stroke, _, _ in own} & set(RUN_COLOURS)) == 5
    assert len([width for width in widths if 1.25 <= width <= 3.4]) >= 5, "each wider than the next"


def test_lines_in_another_unit_and_without_fp() -> None:
    line = Line("a", ([60.0], [0.5]), ([120.0], [0.6]))
    assert line.end == 120.0
    assert line.scaled(60.0) == Line("a", ([1.0], [0.5]), ([2.0], [0.6]))
    assert line.without_fp() == Line("a", ([60.0], [0.5]))
    only = Line("a", ([], []), ([120.0], [0.6]))
    assert only.without_fp() == only


def test_the_page_of_a_comparison_has_its_tables_and_pictures(tmp_path: Path) -> None:
    table = write_results(Kept([deployed(cell) for cell in CELLS], []), tmp_path)
    text = (tmp_path / "comparison.html").read_text()
    page, found = Page(text), svgs(text)
    assert set(found) == {"time-to-target", "runs-virtual", "runs-round", "run-modes", "run-bytes"}
    assert {"all-ptq", "all-qat", "quantized val_accuracy"} <= set(texts(found["runs-virtual"]))
    for said in ("Quantized val_accuracy at equal virtual time", "Target: half a point short of what all-qat"):
        assert said in table
        assert said in page.text
    assert all(len(each["aria-label"] or "") > 40 for each in page.named("svg"))
    assert "#01010" not in text
    told = "Best deployed model: all-qat, val_accuracy 0.9000; less all-ptq: +0.3000, of too few seeds to be told from"
    assert table.startswith(told)
    assert text.index(told) < text.index("<svg") < text.index("<table"), "the answer, the pictures, the tables"
    assert {"PTQ", "QAT"} <= set(texts(found["run-modes"]))


def test_versions_that_differ_between_cells_are_told(tmp_path: Path) -> None:
    cells = [made_cell("all-ptq", seed, 10.0, [0.1, 0.5]) for seed in (0, 1)]
    cells[0].summary["versions"] = {"torch": "2.12"}  # type: ignore[index]  # a dict underneath
    cells[1].summary["versions"] = {"torch": "2.13"}  # type: ignore[index]
    write_results(Kept(cells, []), tmp_path)
    text = Page((tmp_path / "comparison.html").read_text()).text
    assert "Packages whose versions differ" in text
    assert "all-ptq, seed 1" in text
