"""A disk that is full at any moment: one sentence, exit code 2, the last checkpoint whole, and the same bits after."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhq_lightning.cli.main import main

from ..small_recipe import write_recipe
from .test_signals import only_run, weights

POINTS = range(1, 11)
"""Tenths of what the whole run needs."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with room enough; `model.pt2` and report too, since they are what a disk is full for at the end."""
    folder = tmp_path_factory.mktemp("whole")
    write_small(folder / "mine.yaml")
    assert main(["run", str(folder / "mine.yaml"), f"--trainer.default_root_dir={folder}"]) == 0
    return only_run(folder)


def write_small(path: Path) -> None:
    """Four rounds of a model whose checkpoints are larger than what else is written."""
    write_recipe(path, {"trainer.max_rounds": 4, "model.init_args.hidden_sizes": [128, 128]})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)


@pytest.mark.parametrize(
    "tenths", [each if each in (1, 5, 7) else pytest.param(each, marks=pytest.mark.slow) for each in POINTS]
)
def test_a_full_disk(tenths: int, whole: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(file.stat().st_size for file in whole.rglob("*")) // 1024
    write_small(tmp_path / "mine.yaml")
    resize(disk, size * tenths // 10)
    capsys.readouterr()
    assert main(["run", "mine.yaml", "--trainer.default_root_dir=disk"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("fedhq: recipe mine: disk/mine/")
    assert errors.endswith(": cannot be written (No space left on device)\n")
    assert errors.count("\n") == 1
    resize(disk, 4 * size)
    run_dir = only_run(disk)
    assert not list(run_dir.rglob(".*")), "nothing is left half written"
    assert main(["resume", str(run_dir)]) == 0
    assert weights(run_dir) == weights(whole)
    assert len((run_dir / "rounds.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("tenths", [pytest.param(5, marks=pytest.mark.slow), 9])
def test_a_full_disk_and_wandb(
    tenths: int, whole: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What W&B cannot write is its own affair; where the run itself finds no room, the run ends as without W&B."""
    size = sum(file.stat().st_size for file in whole.rglob("*")) // 1024
    write_small(tmp_path / "mine.yaml")
    resize(disk, size * tenths // 10)
    capsys.readouterr()
    assert main(["run", "mine.yaml", "--trainer.default_root_dir=disk", "--trainer.logger=true"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].endswith(": cannot be written (No space left on device)")
    assert all(line.startswith("fedhq: ") for line in errors)
    resize(disk, 100 * size)
    run_dir = only_run(disk)
    assert main(["resume", str(run_dir)]) == 0
    assert weights(run_dir) == weights(whole)
    shutil.rmtree(run_dir)
