import os
import platform
import subprocess
import sys

import pytest

from fedhq_lightning.support.memory import keep_freed_memory

PROGRAM = """
import resource, torch
from fedhq_lightning.support.memory import keep_freed_memory
if KEEP:
    assert keep_freed_memory()
torch.set_num_threads(1)
layers = [layer for _ in range(4) for layer in (torch.nn.Linear(1024, 1024), torch.nn.ReLU())]
module, x = torch.nn.Sequential(*layers), torch.randn(256, 1024)
optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
def step():
    module(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM.replace("KEEP", str(keep))]
    run = subprocess.run(command, capture_output=True, check=True, env=environment)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_training_steps_use_freed_memory_again() -> None:
    """Without the setting, the system clears some thousand pages in every step."""
    assert 4 * page_faults(keep=True) < page_faults(keep=False)


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="glibc has the setting")
def test_does_nothing_elsewhere() -> None:
    assert keep_freed_memory() is False
