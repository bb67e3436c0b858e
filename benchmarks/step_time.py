"""Whole training steps: models x lanes, time and peak memory, against fp32 in the same run.

    python benchmarks/step_time.py         # 15 minutes on one core; prints, and writes docs/results/step-times.md
    python benchmarks/step_time.py --accelerator cuda
    python benchmarks/step_time.py --models mlp-1024 --lanes fp32 ptq --rounds 2 --print-only

Each lane of a model gets the same weights and batch and is warmed up. Then the lanes take turns, in an order drawn
anew each round: one unrecorded step, then a block of recorded ones, more where a step is short. A lane's figure is the
median of its blocks' medians. Memory is measured apart, one process for each model and lane.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import machine
import results
import torch
from step_cases import LANES, MODELS, build_step, lanes_for
from step_statistics import (
    TARGETS,
    LaneResult,
    ModelResult,
    lane_table,
    target_rows,
    target_table,
)

from fedhq_lightning.quantize.native.lanes import native_level
from fedhq_lightning.support.memory import keep_freed_memory

WARM_UP_STEPS = 3
BLOCK_SECONDS = 0.2
"""Blocks of short steps go on for about this long: five steps of a third of a millisecond are mostly noise."""
TEXT = """## Training steps, {accelerator}{kernels}

Forward, loss, backward, fused SGD with momentum, `zero_grad`; the same weights and batch for every lane of a model.
Printed by `{command}`: {rounds} rounds in which the lanes take turns in random order, each with {steps} recorded steps
or as many more as fit into {block_seconds:g} s. Time is the median of the rounds' medians. Speed is fp32's time over
the lane's in the same round: the median of the rounds, in brackets the smallest and the largest. The first 3 steps
include all compilation (less, where a cache on disk has it). {memory}

{machine}

{tables}

### Targets, {accelerator}{kernels}

{targets}
"""
MEMORY = {
    "cpu": "Memory is the peak of what torch's allocator had handed out, weights, gradients and momentum included; "
    "scratch memory that oneDNN keeps to itself is not seen.",
    "cuda": "Memory is `torch.cuda.max_memory_allocated`, weights, gradients and momentum included.",
}


def main() -> None:
    """Measure, print, write the section."""
    options = parse()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as FederatedTrainer does; all lanes gain
    described = machine.describe(options.threads, options.accelerator)
    print(described, end="\n\n", flush=True)
    # A section for each kind of processor: nothing else decides as much.
    kernels = f", {native_level() or 'torch'} kernels" if options.accelerator == "cpu" else ""
    tables, targets = [], []
    titles = {name: lane.title for name, lane in LANES.items()}
    for name in options.models:
        model = MODELS[name]
        result = measure(name, options)
        tables.append(f"### {model.title}, {options.accelerator}{kernels}\n\n{lane_table(result, titles)}")
        print(tables[-1], end="\n\n", flush=True)
        targets += target_rows(model.title, result, TARGETS[name], titles)
    text = TEXT.format(
        accelerator=options.accelerator,
        kernels=kernels,
        command=" ".join(["python benchmarks/step_time.py", *sys.argv[1:]]),
        rounds=options.rounds,
        steps=options.steps,
        block_seconds=BLOCK_SECONDS,
        memory=MEMORY[options.accelerator] if options.memory else "",
        machine=described,
        tables="\n\n".join(tables),
        targets=target_table(targets),
    )
    print(target_table(targets))
    if not options.print_only:
        results.write_section(f"step_time {options.accelerator}{kernels}", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES), metavar="LANE")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5, help="recorded steps of a lane in one round, at least")
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the order in which lanes take turns")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="measure time only")
    parser.add_argument("--output", type=Path, default=results.PAGES / "step-times.md")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    options = parser.parse_args()
    if options.accelerator == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "--accelerator cuda: torch sees no CUDA device here\n")
    return options


def measure(name: str, options: argparse.Namespace) -> ModelResult:
    """All chosen lanes of one model; a lane that fails is kept with its error."""
    device = torch.device(options.accelerator)
    model = MODELS[name]
    result = {lane: LaneResult() for lane in lanes_for(model) if lane in options.lanes}
    steps: dict[str, Callable[[], None]] = {}
    counts: dict[str, int] = {}
    for lane, measured in result.items():
        try:
            steps[lane] = build_step(model, LANES[lane], device)
            warm_up = step_seconds(steps[lane], WARM_UP_STEPS, device)
            measured.warm_up_seconds = sum(warm_up)
            counts[lane] = max(options.steps, int(BLOCK_SECONDS / warm_up[-1]))
        except Exception as error:  # other projects' lanes too: whatever one raises, the others can be measured
            steps.pop(lane, None)
            measured.error = first_line(error)
            print(f"{name}, {lane} did not run: {measured.error}", file=sys.stderr)
    order = random.Random(options.seed)
    for _ in range(options.rounds):
        for lane in order.sample(list(steps), len(steps)):
            result[lane].blocks.append(median(step_seconds(steps[lane], counts[lane] + 1, device)[1:]))
    steps.clear()
    if options.memory:
        for lane in result:
            if not result[lane].error:
                result[lane].peak_bytes = peak_bytes(name, lane, options)
    return result


def step_seconds(step: Callable[[], None], count: int, device: torch.device) -> list[float]:
    """Seconds of each of some consecutive steps.

    On a GPU by events between the steps, so that the host may run ahead of the device as it does in training.
    """
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]  # untyped in torch
        for number, event in enumerate(events):
            if number:
                step()
            event.record()
        torch.cuda.synchronize()
        return [first.elapsed_time(second) / 1e3 for first, second in itertools.pairwise(events)]
    stamps = [time.perf_counter()]
    for _ in range(count):
        step()
        stamps.append(time.perf_counter())
    return [second - first for first, second in itertools.pairwise(stamps)]


def peak_bytes(model: str, lane: str, options: argparse.Namespace) -> int | None:
    """Peak memory as step_memory.py finds it in a process of its own; None where that fails."""
    program = Path(__file__).with_name("step_memory.py")
    arguments = ["--model", model, "--lane", lane, "--accelerator", options.accelerator]
    run = subprocess.run(
        [sys.executable, program, *arguments, "--threads", str(options.threads)], capture_output=True, text=True
    )
    if run.returncode:
        print(f"{model}, {lane}: memory not measured:\n{run.stderr}", file=sys.stderr)
        return None
    peak: int = json.loads(run.stdout.splitlines()[-1])["peak_bytes"]
    return peak


def first_line(error: Exception) -> str:
    """Kind and first line of an error, for a table."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


if __name__ == "__main__":
    main()
