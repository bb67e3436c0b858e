"""How torch computes while a recipe is at work: on as many threads as it says, and to the same bits at every run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reproducible(threads: int, device: torch.device) -> Iterator[None]:
    """Have torch compute what a recipe's bits depend on as the recipe has it; afterwards as before.

    On a GPU, whose fastest kernels add up in any order, torch chooses reproducible ones, in full float32; where an
    operation has none it warns and goes on. cuBLAS reads CUBLAS_WORKSPACE_CONFIG when it is first used: in a process
    that has used it before without, products may differ from run to run.

    Args:
        threads: Of this process, 1 or more: bits may depend on their number.
        device: Where modules run.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if device.type == "cuda":
            with _reproducible_on_gpus():
                yield
        else:
            yield
    finally:
        torch.set_num_threads(threads_before)


def device_name(device: torch.device) -> str:
    """What a device is called: `cpu`, or a GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _reproducible_on_gpus() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
