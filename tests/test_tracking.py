"""What goes to the loggers, read back from the offline files of a real W&B run."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.history.offline_wandb import _records
from fedhq_lightning.reporting.allocation_figures import write_allocation_picture

from .logged_run import log_offline, write_logged_run
from .small_run import EXPLANATION, allotted_rounds, small_rounds, write_allocation


class Logged:
    """Last values, artifacts and metric definitions of an offline run."""

    def __init__(self, run_dir: Path) -> None:
        (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
        self.folder = file.parent
        self.values: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[str, set[str]] = {}
        self.axes: dict[str, str] = {}
        for record in _records(file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                for item in record.history.item:
                    self.values[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            elif kind == "summary":
                for item in record.summary.update:
                    self.summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            elif kind == "artifact":
                files = {entry.path for entry in record.artifact.manifest.contents}
                self.artifacts[record.artifact.type] = files
            elif kind == "metric":
                self.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric


def test_an_allocators_map_boundaries_and_study_are_logged(tmp_path: Path) -> None:
    rounds = allotted_rounds(num_rounds=4)
    run_dir = write_allocation(write_logged_run(tmp_path / "20250101-120000-ab12", rounds), num_rounds=4)
    (run_dir / "study.log").write_text("{}\n")
    picture = write_allocation_picture(run_dir)
    assert picture is not None
    log_offline(run_dir, rounds)
    logged = Logged(run_dir)
    assert logged.values["allocation/slack"] == rounds[-1].allocation["slack"]
    assert logged.axes["*"] == "round"
    assert logged.artifacts["study"] == {"allocation.json", "study.log", "allocation.svg"}
    assert logged.artifacts.keys() == {"model", "recipe", "study", "run_table"}
    assert logged.summary["allocation_explanation"] == EXPLANATION
    html = (logged.folder / "files" / logged.values["allocation_map.path"]).read_text()
    assert html == picture.read_text()
    tables = {
        name: json.loads((logged.folder / "files" / logged.values[f"allocation_{name}.path"]).read_text())
        for name in ("clients", "boundaries")
    }
    assert [row[tables["clients"]["columns"].index("mode")] for row in tables["clients"]["data"]][:2] == ["qat", "ptq"]
    assert [row[tables["boundaries"]["columns"].index("trial")] for row in tables["boundaries"]["data"]] == [0, 0, 1, 1]


@pytest.mark.parametrize("left", ["nothing", "another allocator's file"])
def test_other_allocators_log_no_map(tmp_path: Path, left: str) -> None:
    run_dir = write_logged_run(tmp_path / "20250101-120000-ab13", small_rounds(num_rounds=1))
    if left != "nothing":
        (run_dir / "allocation.json").write_text('{"mine": 1}')
    log_offline(run_dir, small_rounds(num_rounds=1))
    logged = Logged(run_dir)
    assert not [name for name in (*logged.values, *logged.summary) if name.startswith("allocation")]
    assert logged.artifacts.get("study") == (None if left == "nothing" else {"allocation.json"})
