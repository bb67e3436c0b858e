"""What the deployed model takes on this host's CPU, beside the float32 model that it came from: wall time and bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedhq_lightning.deploy.export import first_samples

_MOST_REPETITIONS = 40
_MOST_SECONDS = 0.5
"""Of each batch size. A forward that is under way is not cut short, and each model has one repetition at least."""


def measure_inference(
    plain: nn.Module,
    program: nn.Module,
    example_args: tuple[Any, ...],
    file: Path,
    weights: Path,
    packed_bytes: int | None,
) -> dict[str, Any]:
    """Wall times of single forwards of an exported program and of its float32 module, in turns, on torch's threads.

    Args:
        plain: The module with float32 weights, on the CPU; put into evaluation mode.
        program: The exported program, as read.
        example_args: Inputs on the CPU, the first dimension of tensors being the batch; its first sample is the
            other batch.
        file: The program's .pt2 file, for its size.
        weights: The module's weights as a file, for its size.
        packed_bytes: What `packed_size` gives.

    Returns:
        `threads`; `fp32_bytes` (of `weights`), `int8_bytes` (of `file`, its graph included),
        `packed_bytes` (what the weights take at the scheme's bits); `batch_sizes`, by batch size as text:
        `fp32_ms`, `int8_ms` (medians of wall milliseconds for the whole batch), `fp32_ms_quartiles`,
        `int8_ms_quartiles` (first and third), `speedup` (fp32 over int8, the median over pairs; above 1: int8 is
        faster), `repetitions`.
    """
    plain.eval()
    batch_sizes = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for args in (first_samples(example_args, 1), example_args):
            batch_sizes[str(batch_size(args))] = _in_turns(partial(plain, *args), partial(program, *args))
    return {
        "threads": torch.get_num_threads(),
        "fp32_bytes": weights.stat().st_size,
        "int8_bytes": file.stat().st_size,
        "packed_bytes": packed_bytes,
        "batch_sizes": batch_sizes,
    }


def batch_size(args: tuple[Any, ...]) -> int:
    """First dimension of the first tensor that has one."""
    return next(leaf.shape[0] for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim())


def _in_turns(fp32: Callable[[], Any], int8: Callable[[], Any]) -> dict[str, Any]:
    works = {"fp32": fp32, "int8": int8}
    times: dict[str, list[float]] = {kind: [] for kind in works}
    started = time.perf_counter()
    for turn in range(_MOST_REPETITIONS + 1):
        elapsed = time.perf_counter() - started
        if turn and elapsed > _MOST_SECONDS:
            break
        if turn == 1 and elapsed < _MOST_SECONDS / 2:
            # It only warmed the caches; a slow model's first forward has to do.
            times = {kind: [] for kind in works}
        for kind in works if turn % 2 == 0 else reversed(list(works)):
            before = time.perf_counter()
            works[kind]()
            times[kind].append((time.perf_counter() - before) * 1e3)
    figures: dict[str, Any] = {}
    for kind, values in times.items():
        quarters = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        figures |= {f"{kind}_ms": median(values), f"{kind}_ms_quartiles": [quarters[0], quarters[2]]}
    speedup = median(slow / fast for slow, fast in zip(times["fp32"], times["int8"], strict=True))
    return figures | {"speedup": speedup, "repetitions": len(times["int8"])}
