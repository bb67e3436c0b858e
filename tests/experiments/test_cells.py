"""What a comparison keeps of a run."""

import json
import math
from pathlib import Path

from fedhq_lightning.experiments.cells import cell_of_run, read_cell, write_cell
from fedhq_lightning.run.run import Run, curve

from ..small_run import allotted_rounds, write_run


def test_a_cell_keeps_what_the_run_tells(tmp_path: Path) -> None:
    write_run(tmp_path / "run", allotted_rounds())
    run = Run(tmp_path / "run")
    summary = json.loads((run.folder / "summary.json").read_text())
    summary |= {"compiled_kernels": True, "metric_fp": "inf"}
    (run.folder / "summary.json").write_text(json.dumps(summary))
    cell = cell_of_run(run, "hybrid", 3, "print", {}, larger_is_better=True)
    write_cell(cell, tmp_path / "cell.json")
    again = read_cell(tmp_path / "cell.json")
    assert again == cell
    assert again.curve("virtual") == curve(run.columns(), "virtual")
    assert again.summary["metric_fp"] == math.inf
    members = [[(each.client_id, each.tier, each.mode) for each in record.clients] for record in run.stream()]
    assert [[(name, cell.tiers[tier], mode) for name, tier, mode in each] for each in cell.clients] == members[1:]
