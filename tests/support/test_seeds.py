"""Seeds: from the run's seed and what the numbers are for, and from nothing else."""

import random

import numpy as np
import torch

from fedhq_lightning.support.seeds import derive_seed, seed_generators


def test_is_fixed_for_all_time() -> None:
    """A change here would give every recipe other bits."""
    assert derive_seed(0, "fit", 1, 2) == 1439385292672443741
    assert derive_seed(7) == 843011692241435484
    assert derive_seed(3, "fit", 2, "client-a") == 6932421490148829361, "strings hash otherwise in another interpreter"


def test_purposes_do_not_collide() -> None:
    words = [(), (1,), ("1",), (1, 1), (11,), ("fit", 1, 23), ("fit", 12, 3), ("cohort", 1, 23), ("fit", 1, "23")]
    seeds = {derive_seed(seed, *word) for seed in (0, 1, -1) for word in words}
    assert len(seeds) == 3 * len(words)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_every_global_generator() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    seed_generators(2**63 - 1)
    first = draw()
    assert draw() != first
    seed_generators(2**63 - 1)
    assert draw() == first
    seed_generators(0)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
