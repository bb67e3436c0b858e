"""How long a process has been there."""

import subprocess
import sys
import time

from fedhq_lightning.support.process_age import seconds_so_far


def test_counts_what_was_before_the_first_line() -> None:
    code = "import time; time.sleep(0.3); from fedhq_lightning.support.process_age import *; print(seconds_so_far())"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.29 < float(done.stdout) < time.perf_counter() - began + 0.02


def test_goes_on() -> None:
    before = seconds_so_far()
    time.sleep(0.05)
    assert seconds_so_far() - before > 0.03
