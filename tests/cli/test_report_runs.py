"""`fedhq report`: one run's report anew, several runs on one page, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.cli.main import main
from fedhq_lightning.cli.report_runs import report_runs
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.side_by_side import runs_side_by_side
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.run import Run

from ..report.test_report import Page, svgs, texts
from ..small_run import small_rounds, write_run

RECIPE = """trainer:
  max_rounds: 12
  scheme: {scheme}
  enable_progress_bar: true
  callbacks:
  - class_path: fedhq_lightning.callbacks.{allocator}
    init_args:
      {argument}
data:
  class_path: fedhq_lightning.data.Digits
"""


def run(folder: Path, allocator: str = "HybridAllocator", argument: str = "fine: true", **changes: Any) -> Path:
    write_run(folder, changes.pop("rounds", None), **changes)
    recipe = RECIPE.format(scheme=changes.get("scheme", "w4a8"), allocator=allocator, argument=argument)
    (folder / "recipe.yaml").write_text(recipe)
    return folder


def worse(rounds: list[RoundRecord], loss: float) -> list[RoundRecord]:
    """The same run, so much worse in every evaluation."""
    return [
        record
        if record.metric_quantized is None or record.metric_fp is None
        else replace(record, metric_quantized=record.metric_quantized - loss, metric_fp=record.metric_fp - loss)
        for record in rounds
    ]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    other = worse(small_rounds(seed=2), 0.05)
    return [
        run(root / "20250101-120000-ab12"),
        run(root / "20250102-120000-cd34", "FixedAllocator", "allocation: ptq", rounds=other, seed=2, best_round=12),
    ]


@pytest.fixture(scope="module")
def merged(two: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return report_runs(two, tmp_path_factory.mktemp("page") / "merged.html").read_text()


class TestOneRun:
    def test_its_report_is_written_anew(self, tmp_path: Path) -> None:
        run_dir = run(tmp_path / "run")
        (run_dir / "report.html").write_text("an earlier one, of an earlier version")
        path = report_runs([run_dir])
        assert path == run_dir / "report.html"
        assert "<h1>digits" in path.read_text()

    def test_or_under_another_name(self, tmp_path: Path) -> None:
        run_dir = run(tmp_path / "run")
        path = report_runs([run_dir], tmp_path / "one.html")
        assert not (run_dir / "report.html").exists()
        assert path.read_text() == report_runs([run_dir]).read_text()

    def test_by_its_name_as_resume_and_eval_take_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        folder = run(Path("runs/digits/20250101-120000-00ab12-first-try"))
        assert main(["report", "first-try"]) == 0
        assert capsys.readouterr().out == f"{folder}/report.html written\n"
        assert "<h1>digits" in (folder / "report.html").read_text()
        assert ": first-try</h1>" in (folder / "report.html").read_text()
        (folder / "recipe.yaml").unlink()
        assert main(["resume", "00ab12"]) == 2
        assert f"resume {folder}: no recipe.yaml there" in capsys.readouterr().err
        assert main(["eval", "first-try"]) == 2
        assert f"in {folder}" in capsys.readouterr().err


class TestSeveralRuns:
    def test_legends_have_the_names_that_tell_the_runs_apart(self, tmp_path: Path) -> None:
        folders = [run(tmp_path / f"2025010{day}-120000-00ab1{day}-{name}") for day, name in ((1, "one"), (2, "two"))]
        assert [each.label for each in runs_side_by_side(list(map(Run, folders))).runs] == ["A: one", "B: two"]
        folders.append(run(tmp_path / "20250103-120000-00ab13-two"))
        labels = [each.label for each in runs_side_by_side(list(map(Run, folders))).runs]
        assert all("2025010" in label for label in labels), "two of one name"

    def test_in_the_working_directory_by_default(
        self, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert report_runs(two) == Path("comparison.html")
        assert Path("comparison.html").read_text() == merged
        assert report_runs(two) == Path("comparison.html"), "a page of ours is replaced"

    def test_curves_of_all_runs_over_virtual_time_and_rounds(self, merged: str) -> None:
        found = svgs(merged)
        for name, label in (
            ("runs-virtual", "virtual time (min)"),
            ("runs-round", "round"),
        ):
            shown = texts(found[name])
            assert {label, "val_accuracy", "worst final"} <= set(shown)
            assert "A: 20250101-120000-ab12" in shown
            assert "B: 20250102-120000-cd34" in shown
            drawn = "".join(element.get("style", "") for element in found[name].iter("path"))
            assert {"var(--run-0)", "var(--run-1)"} <= set(re.findall(r"var\(--run-\d\)", drawn))
            assert drawn.count("stroke-dasharray") >= 2, "fp is dashed"

    def test_finals_and_when_each_was_as_good_as_the_worst(self, two: list[Path], merged: str) -> None:
        comparison = runs_side_by_side([Run(path) for path in two])
        target = comparison.target
        assert target is not None
        assert comparison.direction == "max"
        assert target == comparison.runs[1].run.final
        earlier = next(
            record for record in small_rounds() if record.metric_quantized and record.metric_quantized >= target
        )
        assert earlier.round < 12
        reached = comparison.reached(comparison.runs[0])
        assert reached is not None
        assert (reached.round, reached.total_wall_seconds) == (earlier.round, earlier.total_wall_seconds)
        text = Page(merged).text
        for part in (f"wall until {target:.4f}", f"virtual until {target:.4f}", f"{earlier.total_wall_seconds:.1f} s"):
            assert part in text

    def test_only_the_keys_that_differ(self, two: list[Path], merged: str) -> None:
        comparison = runs_side_by_side([Run(path) for path in two])
        assert comparison.differing_keys() == [
            (
                "trainer.callbacks.0.class_path",
                ["fedhq_lightning.callbacks.HybridAllocator", "fedhq_lightning.callbacks.FixedAllocator"],
            ),
            ("trainer.callbacks.0.fine", ["true", "-"]),
            ("trainer.callbacks.0.allocation", ["-", "ptq"]),
        ]
        text = Page(merged).text
        assert "trainer.callbacks.0.fine" in text
        assert "trainer.max_rounds" not in text
        assert "All runs ran with the same versions." in text

    def test_accessible_and_self_contained(self, merged: str) -> None:
        page = Page(merged)
        assert not page.named("script")
        assert "http" not in merged
        assert all(len(each["aria-label"] or "") > 40 for each in page.named("svg"))
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert len(page.named("caption")) == len(page.named("table"))
        assert "#01010" not in merged

    def test_other_data_and_other_versions_are_said(self, tmp_path: Path) -> None:
        one, other = run(tmp_path / "one"), run(tmp_path / "other", versions={"torch": "2.12.0"})
        (other / "recipe.yaml").write_text((one / "recipe.yaml").read_text().replace("Digits", "MNIST5k"))
        text = Page(report_runs([one, other], tmp_path / "page.html").read_text()).text
        assert "The data differ, so the metrics may not be of the same held-out examples." in text
        assert "2.12.0" in text

    def test_recipes_tell_runs_apart_where_they_can(self, tmp_path: Path) -> None:
        paths = [run(tmp_path / "one", recipe="first"), run(tmp_path / "two", recipe="second")]
        assert [each.label for each in runs_side_by_side([Run(path) for path in paths]).runs] == [
            "A: first",
            "B: second",
        ]

    def test_runs_without_a_quantized_model_a_best_round_or_a_recipe(self, tmp_path: Path) -> None:
        plain = [replace(record, metric_quantized=None) for record in small_rounds()]
        one = run(tmp_path / "one", rounds=plain, scheme=None, metric_quantized=None)
        other = run(tmp_path / "two", best_round=None)
        (other / "recipe.yaml").unlink()
        text = Page(report_runs([one, other], tmp_path / "page.html").read_text()).text
        assert "A run has no final value" in text
        assert "Not told: no recipe.yaml in B: " in text

    def test_runs_without_any_evaluation(self, tmp_path: Path) -> None:
        none = [replace(record, metric_quantized=None, metric_fp=None) for record in small_rounds()]
        empty = {"rounds": none, "best_round": None, "metric_fp": None, "metric_quantized": None}
        paths = [run(tmp_path / name, **empty) for name in ("one", "two")]
        assert "do not tell" in report_runs(paths, tmp_path / "page.html").read_text()

    def test_thirty_runs(self, tmp_path: Path) -> None:
        paths = [run(tmp_path / f"run-{number}", rounds=small_rounds(num_rounds=4)) for number in range(30)]
        page = report_runs(paths, tmp_path / "page.html")
        assert "AD: run-29" in page.read_text()
        assert page.stat().st_size < 600_000


class TestRefused:
    def check(self, match: str, paths: list[Path], output: Path | None = None) -> None:
        with pytest.raises(ConfigurationError, match=match):
            report_runs(paths, output)

    def test_what_is_no_finished_run(self, two: list[Path], tmp_path: Path) -> None:
        self.check("no run was given", [])
        self.check("nowhere: no such folder", [tmp_path / "nowhere"])
        self.check(r"summary\.json: a file; give the folder", [two[0] / "summary.json"])
        self.check(r"holds runs and is none; give its 2 finished runs themselves, such as .*cd34", [two[0].parent])
        self.check(r"holds runs and is none; give its \d+ finished runs", [two[0].parent.parent])
        self.check("holds no run; give the folder of a run", [tmp_path])
        unfinished = run(tmp_path / "going")
        (unfinished / "summary.json").unlink()
        self.check(r"did not end.*fedhq resume .*going", [two[0], unfinished])

    def test_the_same_run_twice(self, two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self.check("ab12: the same run was given twice; give", [two[0], two[1], two[0]])
        monkeypatch.chdir(two[0])
        self.check("the same run was given twice.*also as", [two[0], Path()])

    def test_different_metrics_or_directions(self, two: list[Path], tmp_path: Path) -> None:
        other = run(tmp_path / "other", metric_name="val_loss")
        self.check("different metrics.*ab12 has val_accuracy, other has val_loss", [two[0], other])
        least = run(tmp_path / "least", best_round=2)
        rounds = [
            replace(each, metric_quantized=each.metric_quantized and 1 - each.metric_quantized)
            for each in small_rounds()
        ]
        write_run(least, rounds, best_round=12)
        self.check("different directions.*least has min", [two[0], least])

    def test_a_file_that_is_not_ours(self, two: list[Path], tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        page.write_text("<html>mine</html>")
        self.check("is there already and is no report of ours", two, page)
        self.check("is there already and is no report of ours", two[:1], page)
        assert page.read_text() == "<html>mine</html>"
        self.check("is a folder; name a file", two, tmp_path)
        self.check("cannot be written", two, tmp_path / "no" / "page.html")

    def test_a_damaged_run(self, two: list[Path], tmp_path: Path) -> None:
        broken = run(tmp_path / "broken")
        (broken / "summary.json").write_text(json.dumps([]))
        self.check("is damaged", [two[0], broken])
