"""How torch computes while a recipe is at work: on as many threads as it says, and to the same bits at every run."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")

_PRECISIONS = (
    *(("generic", "all"), ("cuda", "all"), ("mkldnn", "all")),
    *((backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")),
)
"""Where torch keeps a precision of float32, outer ones first: a place that has none answers with the one around it,
and so with its own where those around it have none."""


@contextmanager
def reproducible(threads: int, device: torch.device) -> Iterator[None]:
    """Have torch compute what a recipe's bits depend on as the recipe has it; afterwards as before.

    Products of float32 are in float32, whatever `torch.set_float32_matmul_precision` or a backend's `fp32_precision`
    was told before: that is no part of a recipe. On a GPU, whose fastest kernels add up in any order, torch chooses
    reproducible ones; where an operation has none it warns and goes on. cuBLAS reads CUBLAS_WORKSPACE_CONFIG when it is
    first used: in a process that has used it before without, products may differ from run to run.

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
    tell, told = torch._C._set_fp32_precision_setter, torch._C._get_fp32_precision_getter
    for_all = _answer(torch.get_float32_matmul_precision, "highest")
    cudnn_tf32 = _answer(torch._C._get_cudnn_allow_tf32, True)
    before = {}
    for each in _PRECISIONS:
        before[each] = told(*each)
        tell(*each, "none")
    torch.set_float32_matmul_precision("highest")
    torch._C._set_cudnn_allow_tf32(False)
    tell("generic", "all", "ieee")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(for_all)
        torch._C._set_cudnn_allow_tf32(cudnn_tf32)
        for each, precision in before.items():
            tell(*each, precision)


def _answer(ask: Callable[[], T], by_default: T) -> T:
    """What torch was told for several backends at once; its default where they differ, for then it does not say."""
    try:
        return ask()
    except RuntimeError:
        return by_default


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
