"""Peak memory of one lane's training steps, in a process of its own; benchmarks/step_time.py starts it.

    python benchmarks/step_memory.py --model vit-384 --lane ptq     # prints {"peak_bytes": ...}

On CPU the peak is of the bytes that torch's allocator has handed out, followed by torch's profiler from before the
module exists: weights, gradients, momentum, batch, activations and what kernels take for themselves through it. On
CUDA it is `torch.cuda.max_memory_allocated`. What oneDNN and the compiler allocate by themselves is in neither.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import warnings
from collections.abc import Iterable
from itertools import accumulate

import torch
from step_cases import LANES, MODELS, build_step
from torch.profiler import ProfilerActivity, profile, record_function

WARM_UP_STEPS = 3
STEPS = 3
_MEASURED = "measured steps"


def main() -> None:
    """Measure one pair and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--lane", choices=LANES, required=True)
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure = cuda_peak if options.accelerator == "cuda" else cpu_peak
    print(json.dumps({"peak_bytes": measure(options.model, options.lane)}))


def cpu_peak(model: str, lane: str) -> int:
    """Bytes of the CPU allocator, at their most during the steps after warm-up."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.profiler")
    logging.getLogger("torch.profiler").setLevel(logging.ERROR)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = build_step(MODELS[model], LANES[lane], torch.device("cpu"))
        for _ in range(WARM_UP_STEPS):
            step()
        gc.collect()
        with record_function(_MEASURED):
            for _ in range(STEPS):
                step()
    events = profiler.profiler.kineto_results.events()
    [start] = [event.start_ns() for event in events if event.name() == _MEASURED]
    return peak_after(
        start,
        (
            (event.start_ns(), event.nbytes())
            for event in events
            if event.name() == "[memory]" and event.device_type().name == "CPU"
        ),
    )


def peak_after(start: int, events: Iterable[tuple[int, int]]) -> int:
    """The most that was allocated at or after a time.

    Args:
        start: When to begin to look.
        events: (time, bytes) in any order; frees are negative.
    """
    events = sorted(events, key=lambda event: event[0])
    before = sum(size for time, size in events if time < start)
    return max(accumulate((size for time, size in events if time >= start), initial=before))


def cuda_peak(model: str, lane: str) -> int:
    """The same on the GPU, from its allocator's own statistics."""
    step = build_step(MODELS[model], LANES[lane], torch.device("cuda"))
    for _ in range(WARM_UP_STEPS):
        step()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
