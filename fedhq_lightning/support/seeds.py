"""Where every random number of a run comes from: the run's seed and the words that say what it is for."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed that depends on nothing but its arguments.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for, for example `"fit", round_number, client_id`. Anything whose `repr` is
            stable; 1 and "1" give different seeds.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, which user code and data loaders draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if has_accelerator():
        torch.manual_seed(seed)
    else:  # where it would still write down a stack trace for each kind of device, as long as a small step takes
        torch.default_generator.manual_seed(seed)


@cache
def has_accelerator() -> bool:
    """Whether torch sees a device other than the CPU."""
    return torch.accelerator.is_available()


@contextmanager
def generators_kept(devices: Sequence[int] = ()) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's generators for what runs inside; afterwards they are as they were.

    Args:
        devices: Indices of the CUDA devices whose generators count too; the others are left alone.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(0)
            np.random.seed(0)
            # Not torch.manual_seed: it would reseed accelerators whose state is not put back here.
            torch.default_generator.manual_seed(0)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
