"""The tests for GPUs, on one that is none: nothing in them mixes devices, and integers are those of the CPU's lanes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
FILES = sorted(str(each.relative_to(TESTS)) for each in TESTS.rglob("test_on_gpu.py"))
LONG = ("profiling/test_on_gpu.py",)
"""Half a minute by itself."""


@pytest.mark.corner
@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built for GPUs")
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "file", [pytest.param(each, marks=pytest.mark.slow) if each in LONG else each for each in FILES]
)
def test_passes(file: str) -> None:
    options = ["-p", "tests.fake_gpu.pretend", "-p", "no:cacheprovider", "-q", "-m", "gpu", "--timeout=280"]
    command = [sys.executable, "-m", "pytest", *options, str(TESTS / file)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" not in done.stdout
