"""Where every random number of a run comes from: the run's seed and the words that say what it is for."""

import hashlib
import random

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
    torch.manual_seed(seed)
