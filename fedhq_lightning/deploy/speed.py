"""What the deployed model's files take on this host's CPU, beside the float32 model that they came from: wall time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from fedhq_lightning.deploy.export import batch_size, first_samples

_MOST_REPETITIONS = 40
_MOST_SECONDS = 0.5
"""Of each batch size. A forward that is under way is not cut short, and each model has one repetition at least."""


def measure_inference(
    float_forms: Mapping[str, nn.Module], files: Mapping[str, nn.Module], example_args: tuple[Any, ...]
) -> dict[str, Any]:
    """Wall times of single forwards of a deployed model's files and of its float32 forms, in turns, on torch's threads.

    Args:
        float_forms: The module with float32 weights, on the CPU, by what runs it; put into evaluation mode.
        files: The files' programs, as read, by name.
        example_args: Inputs on the CPU, the first dimension of tensors being the batch; its first sample is the
            other batch.

    Returns:
        `threads`, and `batch_sizes`, by batch size as text: `forms`, by the names given, with `ms` (median of wall
        milliseconds for the whole batch) and `ms_quartiles` (first and third); `fp32` and `int8`, the names of the
        fastest float32 form and of the fastest file; their times as `fp32_ms`, `int8_ms`, `fp32_ms_quartiles`,
        `int8_ms_quartiles`; `speedup` (that `fp32_ms` over that `int8_ms`; above 1: int8 is faster);
        `repetitions`.
    """
    for module in float_forms.values():
        module.eval()
    batch_sizes = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for args in (first_samples(example_args, 1), example_args):
            works = {name: partial(module, *args) for name, module in (*float_forms.items(), *files.items())}
            batch_sizes[str(batch_size(args))] = _told(_in_turns(works), list(float_forms), list(files))
    return {"threads": torch.get_num_threads(), "batch_sizes": batch_sizes}


def _in_turns(works: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
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
    return times


def _told(times: Mapping[str, list[float]], float_forms: list[str], files: list[str]) -> dict[str, Any]:
    forms = {name: {"ms": median(values), "ms_quartiles": _quartiles(values)} for name, values in times.items()}
    figures: dict[str, Any] = {"forms": forms}
    for kind, names in (("fp32", float_forms), ("int8", files)):
        fastest = min(names, key=lambda name: median(times[name]))
        figures |= {kind: fastest} | {f"{kind}_{key}": value for key, value in forms[fastest].items()}
    figures["speedup"] = figures["fp32_ms"] / figures["int8_ms"]  # what a reader of both gets
    return figures | {"repetitions": len(times[figures["int8"]])}


def _quartiles(values: list[float]) -> list[float]:
    quarters = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [quarters[0], quarters[2]]
