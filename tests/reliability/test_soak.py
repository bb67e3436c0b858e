"""Hundreds of rounds with three of ten clients failing in each: nothing grows, nothing stays open."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def soaked(num_rounds: int, folder: Path) -> dict[str, Any]:
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"}
    command = [sys.executable, "-m", "tests.reliability.soak", str(num_rounds)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["rounds"] == num_rounds
    assert found["quarantined"] + found["idle"] == 3 * num_rounds, "others fail in every round"
    assert found["children"] == found["left"] == []
    assert len(set(found["files"][3:])) == 1, "after the loggers have opened theirs"
    return found


def test_a_short_run(tmp_path: Path) -> None:
    soaked(12, tmp_path)


@pytest.mark.slow
def test_500_rounds(tmp_path: Path) -> None:
    memory = soaked(500, tmp_path)["memory"][1:]
    quarters = [mean(memory[start : start + 125]) for start in range(0, 500, 125)]
    print(f"\nmemory of the last quarter over the second: {quarters[3] / quarters[1]:.4f}")
    assert quarters[3] <= 1.01 * quarters[1]
