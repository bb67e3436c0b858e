"""A grid's cells as one file and as folders: nothing is lost on the way, and the same cells make the same bytes."""

import json
from pathlib import Path

import grid_files
import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.cells import cell_path, read_cell, write_cell

from ..experiments.made_cells import made_cell

KEPT = sorted((Path(__file__).parents[2] / "benchmarks" / "cells").glob("*.jsonl"))
GRIDS = [file for file in KEPT if file.read_text(encoding="utf-8").startswith('{"path"')]


def made_folder(folder: Path, *names: str) -> Path:
    """Settings with two cells each, whose numbers are not short."""
    for name in names:
        (folder / name / "cells").mkdir(parents=True)
        (folder / name / "comparison.json").write_text(json.dumps({"recipe": name, "settings": {"b": 1, "a": None}}))
        for seed in (10, 9):
            cell = made_cell("random:2/3", seed, 0.1 + seed / 3, [0.1, 1 / 3, 2 / 3])
            write_cell(cell, cell_path(folder / name / "cells", "random:2-3", seed))
    return folder


def run_interrupted(file: Path, folder: Path) -> None:
    """A command that goes on with the cells of one setting, makes those of another, and is stopped."""
    with grid_files.unpacked(file, folder):
        assert (folder / "w2a8-0.3" / "cells" / "random-2-3-seed-9.json").exists()
        made_folder(folder, "w4a8-5")
        raise KeyboardInterrupt


def test_cells_come_back_as_they_were(tmp_path):
    folder, file = made_folder(tmp_path / "folder", "w4a8-5", "w2a8-0.3"), tmp_path / "grid.jsonl"
    grid_files.pack(folder, file)
    grid_files.unpack(file, tmp_path / "back")
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.json"))
    assert paths == sorted(path.relative_to(tmp_path / "back") for path in (tmp_path / "back").rglob("*.json"))
    assert len(paths) == 6
    for path in paths:
        assert json.loads((tmp_path / "back" / path).read_text()) == json.loads((folder / path).read_text())
        if path.parent.name == "cells":
            assert read_cell(tmp_path / "back" / path) == read_cell(folder / path)


def test_a_setting_opens_with_what_its_cells_share(tmp_path):
    grid_files.pack(made_folder(tmp_path / "folder", "w4a8-5", "w2a8-0.3"), tmp_path / "grid.jsonl")
    paths = [json.loads(line)["path"] for line in (tmp_path / "grid.jsonl").read_text().splitlines()]
    cells = ["cells/random-2-3-seed-10.json", "cells/random-2-3-seed-9.json"]
    assert paths == [f"{name}/{each}" for name in ("w2a8-0.3", "w4a8-5") for each in ("comparison.json", *cells)]


def test_packing_again_changes_no_byte(tmp_path):
    made_folder(tmp_path / "folder", "w4a8-5", "w2a8-0.3")
    grid_files.pack(tmp_path / "folder", tmp_path / "grid.jsonl")
    grid_files.unpack(tmp_path / "grid.jsonl", tmp_path / "back")
    (tmp_path / "back" / "w4a8-5" / ".lock").touch()
    grid_files.pack(tmp_path / "back", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "grid.jsonl").read_bytes()


def test_what_was_run_is_added_even_when_the_command_is_interrupted(tmp_path):
    file, folder = tmp_path / "grid.jsonl", tmp_path / "runs" / "grid"
    with grid_files.unpacked(file, folder):
        made_folder(folder, "w2a8-0.3")
    with pytest.raises(KeyboardInterrupt):
        run_interrupted(file, folder)
    assert not folder.exists()
    assert len(file.read_text().splitlines()) == 6


def test_what_a_killed_command_left_is_taken_up(tmp_path):
    made_folder(tmp_path / "runs" / "grid", "w2a8-0.3")
    with grid_files.unpacked(tmp_path / "grid.jsonl", tmp_path / "runs" / "grid"):
        pass
    assert len((tmp_path / "grid.jsonl").read_text().splitlines()) == 3


def test_one_process_a_grid(tmp_path):
    with grid_files.unpacked(tmp_path / "grid.jsonl", tmp_path / "grid"):
        with pytest.raises(ConfigurationError, match="another process"):
            grid_files.unpacked(tmp_path / "grid.jsonl", tmp_path / "grid").__enter__()
        with grid_files.unpacked(tmp_path / "other.jsonl", tmp_path / "other"):
            pass


def test_nothing_run_makes_no_file(tmp_path):
    with grid_files.unpacked(tmp_path / "grid.jsonl", tmp_path / "grid"):
        pass
    assert not (tmp_path / "grid.jsonl").exists()


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_the_files_that_are_kept_are_as_they_would_be_written(file, tmp_path):
    grid_files.unpack(file, tmp_path / "folder")
    grid_files.pack(tmp_path / "folder", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()
