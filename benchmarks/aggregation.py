"""What an update costs between a client's fit and the sum, and how fast and in how much memory updates are summed.

python benchmarks/aggregation.py     # two minutes on one core; prints the tables, writes docs/results/aggregation.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import machine
import results
import torch
from torch import nn

from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.memory import keep_freed_memory
from fedhq_lightning.types import StateDict

EXAMPLES = 50
SCHEMES = (None, "w8a8")
COLUMNS = ("model", "values", "uplink", "encode", "receive", "sum", "together")
BYTES_PER_VALUE = 20
TEXT = """
## From fit to sum

Milliseconds of one client, medians of {repeats} in turn: processor time of the one thread that works, which is wall
time on a core that nothing else wants. *Encode*: the local model becomes a payload. *Receive*: its checksum, and
whether it holds what it should. *Sum*: decoding, range check and exact sum. Without a scheme models travel in float32.

{machine}

{table}

## {updates} updates of {millions:.0f} million values

- Sum: {sum_ms:.0f} ms an update, {sum_speed:.1f} GB/s, {share:.0%} of a copy's speed. {bytes_per_value} bytes a value:
  4 of the update are read, 8 of the sum are read and written.
- Copy: `tensor.copy_` of as many float32 values, in turn with the updates: {copy_ms:.0f} ms, {copy_speed:.1f} GB/s, 8
  bytes a value.
- The mean, once a round: {mean_ms:.0f} ms.
- Memory: at its peak {models:.2f} times the float32 model above what the process held before (resident set); the update
  that is being added is {update:.2f} of them.

Targets: 50 % of a copy's speed, {speed_verdict}; 3 models for the sum beside the update, {memory_verdict}. Printed by
`python benchmarks/aggregation.py`.
"""


@dataclass(frozen=True)
class Summed:
    """Many updates summed.

    Attributes:
        sum_seconds: Of one update, median.
        copy_seconds: Of a copy of one, median.
        mean_seconds: Of the mean of all.
        peak_bytes: Most that the process held meanwhile above what it held before, the update among it.
        update_bytes: What the update took of it.
    """

    sum_seconds: float
    copy_seconds: float
    mean_seconds: float
    peak_bytes: int
    update_bytes: int


def main() -> None:
    """Measure, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--output", type=Path, default=results.PAGES / "aggregation.md")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every run does
    with torch.device("meta"):
        shapes = shapes_of(large())
    summed = sum_many(shapes, options.updates)  # first, while the process holds little
    rows = [
        row_of(name, make(), scheme, options.repeats)
        for name, make in (("MLP 784-128-10", mlp), ("CNN", cnn), ("MLP, 25 layers of 1,000", large))
        for scheme in SCHEMES
    ]
    text = text_of(summed, sum(shape.numel() for shape in shapes.values()), rows, options.updates, options.repeats)
    print(text)
    if not options.print_only:
        results.write_section("aggregation", text, options.output)


def mlp() -> nn.Module:
    """100,000 values."""
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    """As pfl-research's for CIFAR-10, 1.6 million values."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64 * 14 * 14, 128), nn.Linear(128, 10)
    )


def large() -> nn.Module:
    """25 million values."""
    return nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(25)))


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """Shapes of a module's state."""
    return {name: value.shape for name, value in module.state_dict().items()}


def sum_many(shapes: dict[str, torch.Size], num_updates: int) -> Summed:
    """Sum updates of random values, each in the place of the one before.

    Args:
        shapes: Of the model.
        num_updates: How many.
    """
    before, total = resident_bytes("VmRSS"), ExactMean()
    reset_peak()
    state = {name: torch.randn(shape).mul_(0.05) for name, shape in shapes.items()}
    update_bytes = resident_bytes("VmRSS") - before
    for _ in range(num_updates):
        total.add(state, EXAMPLES)
        for value in state.values():
            value.normal_(std=0.05)
    del state  # the server lets go of an update too
    started = time.thread_time()
    mean, _ = total.mean(Processes(None))
    mean_seconds = time.thread_time() - started
    peak = resident_bytes("VmHWM") - before
    assert mean.keys() == shapes.keys()
    # The copy needs room of its own, so it is timed after the peak was read; beside it the sum once more, in turn.
    source = torch.cat([value.reshape(-1) for value in mean.values()])
    target, copies, again = torch.empty_like(source), list[float](), list[float]()
    total = ExactMean()
    for _ in range(11):
        copies.append(seconds_of(lambda: target.copy_(source)))
        again.append(seconds_of(lambda: total.add(mean, EXAMPLES)))
    return Summed(median(again[1:]), median(copies[1:]), mean_seconds, peak, update_bytes)


def row_of(name: str, module: nn.Module, scheme: str | None, repeats: int) -> list[str]:
    """Cells of `COLUMNS`."""
    found = client_seconds(module, scheme, repeats)
    count = sum(value.numel() for value in module.state_dict().values())
    cells = [f"{1e3 * seconds:.2f}" for seconds in (*found, sum(found))]
    return [name, f"{count:,}", f"`{scheme}`" if scheme else "float32", *cells]


def client_seconds(module: nn.Module, scheme: str | None, repeats: int) -> tuple[float, float, float]:
    """Median seconds of encoding, receiving and summing one update."""
    state: StateDict = dict(module.state_dict())
    grids = QuantScheme(scheme).for_layers(module) if scheme else {}
    link = Link(state, {f"{name}.weight": grid for name, grid in grids.items()}, "weights", "fp32")
    total = ExactMean()
    taken: list[tuple[float, float, float]] = []
    for _ in range(repeats + 1):
        started = time.thread_time()
        payload = link.up(state, state, 1, 7)
        encoded = time.thread_time()
        update = link.open(payload, 1, 7)
        received = time.thread_time()
        total.add(update, EXAMPLES)
        taken.append((encoded - started, received - encoded, time.thread_time() - received))
    encode, receive, add = (median(each[part] for each in taken[1:]) for part in range(3))
    return encode, receive, add


def text_of(summed: Summed, values: int, rows: list[list[str]], num_updates: int, repeats: int) -> str:
    """The section of the page."""
    sum_speed = BYTES_PER_VALUE * values / summed.sum_seconds / 1e9
    copy_speed = 8 * values / summed.copy_seconds / 1e9
    models, update = summed.peak_bytes / (4 * values), summed.update_bytes / (4 * values)
    return TEXT.format(
        repeats=repeats,
        machine=machine.describe(threads=1),
        table=results.table(COLUMNS, rows),
        updates=num_updates,
        millions=values / 1e6,
        sum_ms=1e3 * summed.sum_seconds,
        sum_speed=sum_speed,
        share=sum_speed / copy_speed,
        bytes_per_value=BYTES_PER_VALUE,
        copy_ms=1e3 * summed.copy_seconds,
        copy_speed=copy_speed,
        mean_ms=1e3 * summed.mean_seconds,
        models=models,
        update=update,
        speed_verdict="met" if sum_speed >= copy_speed / 2 else "missed",
        memory_verdict="met" if models - update <= 3 else "missed",
    )


def seconds_of(call: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


def resident_bytes(key: str) -> int:
    """What Linux says this process holds (`VmRSS`), or held at most since `reset_peak` (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def reset_peak() -> None:
    """Let the peak begin at what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
