"""The allocation benchmark: its settings resolve, and its section is made of whatever cells are there."""

from dataclasses import replace

import allocation
import pytest
import results
import yaml

from fedhq_lightning.experiments.cells import write_cell
from fedhq_lightning.experiments.comparison import Kept
from fedhq_lightning.experiments.contestants import BEST_FIXED, contestant
from fedhq_lightning.launch.resolve import resolve

from ..experiments.made_cells import made_cell


@pytest.mark.parametrize("name", allocation.GRIDS)
def test_every_setting_is_a_recipe(name):
    grid = allocation.GRIDS[name]
    keys = allocation.keys_of(grid, [])
    assert len({allocation.file_name(grid, *key) for key in keys}) == len(keys) == len(grid.models) * len(grid.cells)
    model, scheme, alpha = keys[-1]
    content = yaml.safe_load(resolve("setting", allocation.recipe(grid, model, scheme, alpha)).recipe.text)
    assert content["trainer"]["scheme"] == scheme
    assert content["trainer"]["lanes"]["qat_backward"] == "bf16"
    assert content["trainer"]["fleet"] == grid.trainer.get("fleet", "mixed")
    assert content["data"]["init_args"]["partitioner"]["init_args"]["alpha"] == alpha
    for allocator in set(grid.allocators) - {BEST_FIXED}:
        contestant(allocator)


def test_the_cells_that_are_kept_are_of_these_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["allocation.py", "--grid", "delta", "--no-runs", "--print-only"])
    options = allocation.parse()
    with allocation.cells_of(options) as folder:
        kept = allocation.kept_in(options, folder)
    assert [len(each.cells) for each in kept.values()] == [10, 10, 10]


def test_only_some_settings():
    small, large = allocation.GRIDS["small"], allocation.GRIDS["large-models"]
    assert allocation.keys_of(small, ["w2a8:0.05", "lenet:w4a8:5"]) == [("lenet", "w2a8", 0.05), ("lenet", "w4a8", 5.0)]
    assert allocation.keys_of(large, ["w4a8:0.3"]) == [("vit", "w4a8", 0.3), ("resnet", "w4a8", 0.3)]
    assert allocation.file_name(large, "vit", "w4a8", 0.3) == "vit-w4a8-0.3"
    with pytest.raises(SystemExit, match=r"the grid has lenet:w4a8:0.05"):
        allocation.keys_of(small, ["w5a8:0.05"])


def test_the_seeds_that_choose_are_not_compared():
    assert not set(allocation.GRID_SEEDS) & set({seed for grid in allocation.GRIDS.values() for seed in grid.seeds})


def test_the_section_of_some_cells():
    cells = []
    for seed, gain in ((0, 0.10), (1, 0.11), (2, 0.12)):
        cells.append(made_cell("all-ptq", seed, 10.0, [0.1, 0.5, 0.5, 0.5]))
        cells.append(made_cell("all-qat-fake", seed, 20.0, [0.1, 0.6, 0.6, 0.6]))
        cells.append(made_cell("hybrid", seed, 10.0, [0.1, 0.5 + gain, 0.5 + gain, 0.5 + gain]))
        cells[-1].rounds.update({"allocation/incumbent": [None, 0, 0, 0], "allocation/share": [None, 0.0, 0.3, 0.0]})
    cells[-1].rounds["allocation/incumbent"][3] = 1
    text = allocation.section("small", {"w2a8-0.05": Kept(cells, [])})
    lines = [line for line in text.splitlines() if line.startswith("| w2a8-0.05")]
    at, end, lost, seconds, differences, times = lines
    assert "Of its 3 runs 1 took up a boundary\nthat they tried, and 0 began with a `share` above 0." in text
    assert at.split(" | ")[2:4] == ["50.0 ± 0.0", "60.0 ± 0.0"]
    assert "61.0 ± 1.0" in end
    assert lost.split(" | ")[2] == "1.0 ± 0.0"
    assert seconds.split(" | ")[2:4] == ["30.0 ± 0.0", "60.0 ± 0.0"]
    # 11 points, deviation 1, three seeds: 4.303 / sqrt(3) on either side.
    assert differences.split(" | ")[1:3] == ["", "**+11.0 [+8.5, +13.5]**"]  # no all-fp among them
    # 30 seconds against 60, and the straggler's times are 1 to 2.
    assert times.split(" | ")[1:] == ["0.50 [0.50, 0.50]", "- (0 of 3)", "", "", "0.50", " |"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["allocation.py", *map(str, arguments)])
    allocation.main()


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("grid", ["int8-fleet", "resnet"])
def test_the_page_has_the_tables_of_the_kept_cells(grid, tmp_path, monkeypatch, capsys):
    page = tmp_path / "results" / "page.md"
    page.parent.mkdir()
    run(monkeypatch, "--grid", grid, "--no-runs", "--output", page)
    rows = table_rows(capsys.readouterr().out)
    assert len(rows) > 15
    assert rows == table_rows(page.read_text()) == table_rows((results.PAGES / f"grid-{grid}.md").read_text())
    pictures = sorted(path.name for path in tmp_path.rglob("*.svg"))
    assert pictures == [f"allocation-{grid}-{name}.svg" for name in allocation.GRIDS[grid].drawn]
    assert all(f"(../figures/{name})" in page.read_text() for name in pictures)
    assert all((tmp_path / "figures" / name).exists() for name in pictures)


def test_runs_are_packed_and_not_repeated(tmp_path, monkeypatch, capsys):
    started = []

    def run_one(compared, name, workers, left):
        folder = compared._comparison.folder
        started.append(name)
        for allocator in ("all-ptq", "hybrid"):
            if not (path := folder / "cells" / f"{allocator}-seed-3.json").exists():
                job = next(each for each in compared._all_jobs() if each.cell == path)
                cell = made_cell(allocator, 3, 10.0, [0.1, 0.5, 0.5, 0.5])
                cell.rounds.update({"allocation/incumbent": [None, 0, 0, 0], "allocation/share": [None, 0.0, 0.0, 0.0]})
                write_cell(replace(cell, fingerprint=job.fingerprint), path)
                started.append(path.stem)
        return left

    monkeypatch.setattr(allocation, "run", run_one)
    chosen = ["--grid", "delta-mlp", "--only", "w2a8:0.3", "--seeds", "3", "--print-only"]
    folders = ["--folder", tmp_path / "cells", "--runs", tmp_path / "runs"]
    run(monkeypatch, *chosen, *folders)
    first = table_rows(capsys.readouterr().out)
    assert started == ["w2a8-0.3", "all-ptq-seed-3", "hybrid-seed-3"]
    kept = (tmp_path / "cells" / "delta-mlp.jsonl").read_bytes()
    assert len(kept.splitlines()) == 3
    run(monkeypatch, *chosen, *folders)
    assert started[3:] == ["w2a8-0.3"]
    assert table_rows(capsys.readouterr().out) == first
    assert (tmp_path / "cells" / "delta-mlp.jsonl").read_bytes() == kept


def test_no_cells_no_page(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no cells yet"):
        run(monkeypatch, "--no-runs", "--folder", tmp_path, "--output", tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()
