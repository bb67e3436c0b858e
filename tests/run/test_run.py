"""A run read back from its folder, by whoever asks."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run import read_history
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.run import Run, curve

from ..small_run import allotted_rounds, small_rounds, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_run(tmp_path / "run", allotted_rounds())
    return Run(tmp_path / "run")


def test_columns_have_one_value_a_round(run: Run) -> None:
    columns = run.columns()
    records = list(run.stream())
    assert {len(values) for values in columns.values()} == {len(records)}
    assert columns["round"] == [record.round for record in records]
    assert columns["qat"] == [sum(client.mode == "qat" for client in record.clients) for record in records]
    assert columns["allocation/slack"] == [record.allocation.get("slack") for record in records]
    assert columns["allocation/slack"][-1] is not None


def test_a_curve_has_the_evaluated_rounds_over_each_clock(run: Run) -> None:
    known = [record for record in run.rounds if record.metric_quantized is not None]
    assert 1 < len(known) < len(run.rounds), "some rounds were not evaluated"
    values = [record.metric_quantized for record in known]
    assert curve(run.columns(), "round") == ([record.round for record in known], values)
    assert curve(run.columns(), "virtual") == ([record.total_virtual_seconds for record in known], values)
    assert curve(run.columns(), "wall") == ([record.total_wall_seconds for record in known], values)
    assert curve(run.columns(), "wall", "metric_fp")[1] == [each.metric_fp for each in run.rounds if each.metric_fp]


def test_a_run_that_goes_on_tells_what_it_logged(run: Run) -> None:
    (run.folder / "summary.json").unlink()
    assert run.logged().rows == read_history(run.folder).rows
    with pytest.raises(ConfigurationError, match=r"summary\.json: no such file; a run writes it when it ends"):
        _ = run.summary


def test_a_damaged_recipe_is_named(run: Run) -> None:
    (run.folder / "recipe.yaml").write_text("trainer: [")
    with pytest.raises(ConfigurationError, match=r"recipe\.yaml is damaged"):
        run.logged()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_direction_is_the_recipes(tmp_path: Path, mode: str) -> None:
    write_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text(f"trainer: {{monitor_mode: {mode}}}")
    assert Run(tmp_path).direction == mode


def best_of(records: list[RoundRecord], choose: object) -> int:
    values = {each.round: each.monitored for each in records if each.round > 0 and each.monitored is not None}
    return int(choose(values, key=values.__getitem__))  # type: ignore[operator]


@pytest.mark.parametrize(("choose", "direction"), [(min, "min"), (max, "max")])
def test_the_direction_is_that_of_the_best_round(tmp_path: Path, choose: object, direction: str) -> None:
    records = small_rounds()
    write_run(tmp_path, records, best_round=best_of(records, choose))
    (tmp_path / "recipe.yaml").unlink(missing_ok=True)
    assert Run(tmp_path).direction == direction


def test_equal_values_tell_no_direction(tmp_path: Path) -> None:
    records = [
        each if each.metric_quantized is None else replace(each, metric_quantized=0.5, metric_fp=0.5)
        for each in small_rounds()
    ]
    write_run(tmp_path, records, best_round=12)
    (tmp_path / "recipe.yaml").unlink(missing_ok=True)
    assert Run(tmp_path).direction is None
    assert Run(tmp_path).final == 0.5
    found = Run(tmp_path).first_to_reach(0.5, larger_is_better=True)
    assert found is not None
    assert found.round == next(each.round for each in records if each.metric_quantized is not None)


def test_a_value_that_is_not_finite_is_no_final(tmp_path: Path) -> None:
    records = [replace(each, metric_quantized=math.nan) if each.round == 12 else each for each in small_rounds()]
    write_run(tmp_path, records, best_round=12)
    assert Run(tmp_path).final is None
