"""How long this process has been there: Python itself, and what it imports first, take time too."""

import os
import time
from pathlib import Path


def seconds_so_far() -> float:
    """Wall seconds since the system started this process, to a hundredth; 0 where the system does not tell."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        started = stat.rpartition(")")[2].split()[19]  # in ticks since boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return max(0.0, age)
