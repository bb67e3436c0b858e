import os
import platform
import subprocess
import sys

import pytest

from fedhq_lightning.support.memory import keep_freed_memory

PROGRAM = """
import torch
from fedhq_lightning.support.memory import keep_freed_memory

def mebibytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmSize")) / 1024

def grown():
    before = mebibytes()
    tensors = [torch.empty(6 * 2**20) for _ in range(8)]  # of 24 MiB
    most = mebibytes()
    del tensors
    return most - before, mebibytes() - before

print(*grown())
assert keep_freed_memory()
for _ in range(6):
    print(*grown())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_what_tensors_free_is_kept_and_used_again() -> None:
    """Told by the process's size: page faults, which are what it saves, also come from a system short of memory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, env=environment)
    without, *kept = ([float(word) for word in line.split()] for line in done.stdout.splitlines())
    assert without == [pytest.approx(192, abs=16), pytest.approx(0, abs=16)]
    assert kept[0][0] > 176
    assert all(most == left for most, left in kept), "nothing is given back"
    assert kept[3:] == [[0, 0]] * 3, "nor anything more taken, once the pieces fit"


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="glibc has the setting")
def test_does_nothing_elsewhere() -> None:
    assert keep_freed_memory() is False
