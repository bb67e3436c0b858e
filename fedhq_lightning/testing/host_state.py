"""What a host has of its own, and what must decide nothing: clocks and global random numbers."""

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from fedhq_lightning.support.seeds import seed_generators

_CLOCKS = ("time", "monotonic", "perf_counter", "process_time", "thread_time")


def generator_states() -> tuple[Any, ...]:
    """Where Python's, NumPy's and torch's global generators stand."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators begin at a seed, and are put back afterwards."""
    python, numpy, of_torch = generator_states()
    seed_generators(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(of_torch)


@contextmanager
def leaping_clocks(subject: object) -> Iterator[None]:
    """The clocks of `time` leap by an hour at every look.

    Args:
        subject: The modules of its classes see the leaping clocks too where they imported a clock by name.
    """
    hours = count(int(time.time()) // 3600)
    fakes: dict[int, Any] = {}
    for name in _CLOCKS:
        fakes[id(getattr(time, name))] = lambda: next(hours) * 3600.0
        fakes[id(getattr(time, f"{name}_ns"))] = lambda: next(hours) * 3600 * 10**9
    modules = [time, *(sys.modules.get(each.__module__, time) for each in type(subject).__mro__)]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name, value in list(vars(module).items()):
                if id(value) in fakes:
                    patch.setattr(module, name, fakes[id(value)])
        yield
