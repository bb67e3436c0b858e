"""The page of algorithms is that of the code, and what it says to add runs."""

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from fedhq_lightning.cli.main import main

FILE = Path(__file__).parents[3] / "docs" / "algorithms_table.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("algorithms_table", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


algorithms_table = _load()


def test_the_page_is_current() -> None:
    assert algorithms_table.PAGE.read_text(encoding="utf-8") == algorithms_table.page(), (
        "run python docs/algorithms_table.py"
    )


def test_every_algorithm_has_a_row() -> None:
    assert list(algorithms_table.TRIED) == algorithms_table.names()


@pytest.mark.parametrize("name", algorithms_table.TRIED)
def test_what_is_added_runs(name: str, tmp_path: Path) -> None:
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.max_rounds=1"]
    arguments = [*algorithms_table.TRIED[name].split(), *quiet, f"--trainer.default_root_dir={tmp_path}"]
    with warnings.catch_warnings():
        assert main(["run", "digits-smoke", *arguments, "--trainer.export=[]"]) == 0
