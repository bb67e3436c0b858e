"""How torch computes while a recipe is at work: on as many threads as it says, and to the same bits at every run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def reproducible(threads: int, device: torch.device) -> Iterator[None]:
    """Have torch compute what a recipe's bits depend on as the recipe has it; afterwards as before.

    Products of float32 are in float32, whatever `torch.set_float32_matmul_precision` was told before: that is no part
    of a recipe. On a GPU, whose fastest kernels add up in any order, torch chooses reproducible ones; where an
    operation has none it warns and goes on. cuBLAS reads CUBLAS_WORKSPACE_CONFIG when it is first used: in a process
    that has used it before without, products may differ from run to run.

    Args:
        threads: Of this process, 1 or more: bits may depend on their number.
        device: Where modules run.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _full_float32(), _reproducible_on_gpus() if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads_before)


def device_name(device: torch.device) -> str:
    """What a device is called: `cpu`, or a GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _full_float32() -> Iterator[None]:
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set by torch when it is imported
    before = [each.fp32_precision for each in backends]
    try:
        for_all: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # each backend has one of its own
        for_all = None
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if for_all is not None:
            torch.set_float32_matmul_precision(for_all)
        for each, precision in zip(backends, before, strict=True):
            each.fp32_precision = precision


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
