"""What does a round cost here, over another checkout of this package? The demo's rounds, and pfl-research's shape.

    git worktree add /tmp/before 8aee127
    python benchmarks/round_cost.py /tmp/before        # some ten minutes on a quiet host; prints a table

Both run in turns, in this Python; the time is wall. Of the demo (`mnist5k-hybrid`, six rounds) it is that of all
rounds with evaluation and checkpoints, but for round 0, in which kernels are compiled that set-up compiled before; of
the other (`peers_runs.py`, shape A, PTQ, one process) the median round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import peers_runs

ROOT = Path(__file__).parents[1]
DEMO = ("run", "mnist5k-hybrid", "--trainer.max_rounds=6", "--trainer.logger=false", "--trainer.final_evaluation=false")


def run(checkout: Path, *arguments: str, cwd: str) -> str:
    """What a program prints that uses a checkout."""
    environment = {**os.environ, **peers_runs.SETTINGS, "PYTHONPATH": f"{checkout}:{checkout}/benchmarks"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-1000:]}")
    return done.stdout


def demo_seconds(checkout: Path, images: Path) -> float:
    """Wall seconds of the demo's rounds."""
    with tempfile.TemporaryDirectory() as folder:
        run(checkout, "-m", "fedhq_lightning.cli.main", *DEMO, f"--trainer.default_root_dir={folder}", cwd=folder)
        lines = next(Path(folder).glob("*/*/rounds.jsonl")).read_text(encoding="utf-8").splitlines()
        return sum(float(record["wall_seconds"]) for record in map(json.loads, lines) if record["round"])


def shape_seconds(checkout: Path, images: Path) -> float:
    """Wall seconds of a round of pfl-research's benchmark, the median after the first."""
    shape = json.dumps(dataclasses.asdict(peers_runs.SHAPES["A"]))
    with tempfile.TemporaryDirectory() as folder:
        script = str(checkout / "benchmarks" / "peers_contestants.py")
        printed = run(checkout, script, "ours-ptq", shape, "1", str(images), folder, cwd=folder)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    rounds = [float(line["seconds"]) for line in lines if line.get("event") == "round"]
    return median(rounds[1:])


def main() -> None:
    """Run both in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="another checkout")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    cases: dict[str, Callable[[Path, Path], float]] = {"demo": demo_seconds, "pfl's shape": shape_seconds}
    print("| | before, s | now, s | now over before, median [smallest, largest] |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as images:
        for name, seconds in cases.items():
            pairs = []
            for repeat in range(options.repeats):
                order = [options.before.resolve(), ROOT][:: 1 if repeat % 2 else -1]
                found = {checkout: seconds(checkout, Path(images)) for checkout in order}
                pairs.append((found[options.before.resolve()], found[ROOT]))
            ratios = sorted(now / before for before, now in pairs)
            before, now = (median(each) for each in zip(*pairs, strict=True))
            spread = f"{median(ratios):.3f} [{ratios[0]:.3f}, {ratios[-1]:.3f}]"
            print(f"| {name} | {before:.2f} | {now:.2f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
