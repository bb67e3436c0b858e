"""Does a run that starts with what an earlier one logged end better or sooner? The demo's recipe, twice a seed.

    python benchmarks/run_to_run.py                       # a quarter of an hour; writes docs/results/run-to-run.md
    python benchmarks/run_to_run.py --seeds 0 --print-only

The second run of a seed is given the first one's offline Weights & Biases run as `warm_start`. A run that has ended in
`--runs` is not repeated. The setting was fixed before the first of these runs.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import machine
import results

from fedhq_lightning.experiments.statistics import paired_difference
from fedhq_lightning.run.run import Run

RECIPE = "mnist5k-hybrid"
SEEDS = (0, 1, 2, 3, 4)
TEXT = """## A second run, warm-started

`{recipe}` by `HybridAllocator()`, and again with `warm_start`: the first run's offline Weights & Biases run. Both
runs of a seed share initial weights, partition, devices and cohorts. *Deployed*: quantized accuracy on test images of
the round that validation chose, in percent; *end*: mean of the last three evaluations on validation images. Time is
virtual, of the modelled fleet.

Printed by `python benchmarks/run_to_run.py`.

{machine}

{table}

The second less the first, with the 95 % interval of the paired t test: deployed {deployed} points, end {end}
points, virtual seconds {seconds}.
"""


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        deployed: Quantized accuracy on test images.
        end: Mean of its last three evaluations on validation images.
        seconds: Virtual.
        in_qat: Share of the local fits in QAT.
    """

    deployed: float
    end: float
    seconds: float
    in_qat: float


def main() -> None:
    """Run what is missing, tell, write the page."""
    options = parse()
    pairs = []
    for seed in options.seeds:
        first = run(options.runs / "first" / str(seed), seed, None)
        second = run(options.runs / "second" / str(seed), seed, first)
        pairs.append((outcome(first), outcome(second)))
    text = page(options.seeds, pairs)
    print(text)
    if not options.print_only:
        results.write_section("run_to_run", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/run-to-run"))
    parser.add_argument("--output", type=Path, default=results.PAGES / "run-to-run.md")
    parser.add_argument("--print-only", action="store_true", help="leave the page alone")
    return parser.parse_args()


def run(root: Path, seed: int, before: Path | None) -> Path:
    """Directory of a finished run, made where there is none.

    Args:
        root: Where it is looked for, and made.
        seed: Of the trainer and the partitioner.
        before: The run to start with, or None.

    Raises:
        SystemExit: The run failed.
    """
    found = [path.parent for path in sorted(root.glob("*/*/summary.json"))]
    if found:
        return found[-1]
    command = [sys.executable, "-m", "fedhq_lightning.cli", "run", RECIPE, f"--trainer.default_root_dir={root}"]
    command += [f"--trainer.seed={seed}", f"--data.partitioner.seed={seed}"]
    if before is not None:
        (logged,) = (before / "wandb").glob("offline-run-*")
        command.append(f"--trainer.callbacks.HybridAllocator.warm_start={logged.absolute()}")
    code = subprocess.run(command).returncode
    if code:
        raise SystemExit(code)
    return run(root, seed, before)


def outcome(run_dir: Path) -> Outcome:
    """What a finished run came to."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    curve = [record.monitored for record in Run(run_dir).stream() if record.monitored is not None]
    counts = summary["mode_counts"]
    return Outcome(
        deployed=summary["test_metrics"]["quantized/test_accuracy"],
        end=fmean(curve[-3:]),
        seconds=summary["virtual_seconds"],
        in_qat=counts["qat"] / sum(counts.values()),
    )


def page(seeds: Sequence[int], pairs: Sequence[tuple[Outcome, Outcome]]) -> str:
    """The page's section."""
    rows = []
    for seed, (first, second) in zip(seeds, pairs, strict=True):
        rows.append([str(seed), *(cell for pair in _cells(first, second) for cell in pair)])
    columns = [f"{name}, {which}" for name in ("deployed", "end", "seconds", "in qat") for which in ("first", "second")]
    return TEXT.format(
        recipe=RECIPE,
        machine=machine.describe(1),
        table=results.table(("seed", *columns), rows),
        deployed=_difference([(100 * a.deployed, 100 * b.deployed) for a, b in pairs]),
        end=_difference([(100 * a.end, 100 * b.end) for a, b in pairs]),
        seconds=_difference([(a.seconds, b.seconds) for a, b in pairs]),
    )


def _cells(first: Outcome, second: Outcome) -> list[tuple[str, str]]:
    return [
        (f"{100 * first.deployed:.1f}", f"{100 * second.deployed:.1f}"),
        (f"{100 * first.end:.1f}", f"{100 * second.end:.1f}"),
        (f"{first.seconds:.1f}", f"{second.seconds:.1f}"),
        (f"{first.in_qat:.0%}", f"{second.in_qat:.0%}"),
    ]


def _difference(pairs: Sequence[tuple[float, float]]) -> str:
    difference = paired_difference([second for _, second in pairs], [first for first, _ in pairs])
    interval = "" if math.isnan(difference.low) else f" [{difference.low:+.1f}, {difference.high:+.1f}]"
    return f"{difference.mean:+.1f}{interval}"


if __name__ == "__main__":
    main()
