"""What error feedback and stochastic rounding of updates bring: quantized metric on two schemes and two label skews.

    python benchmarks/error_feedback.py            # 48 runs; writes docs/results/error-feedback.md
    python benchmarks/error_feedback.py --seeds 1 --rounds 2 --print-only

Runs are those of `benchmarks/uplink.py` with `uplink: delta`: the recipe mnist5k-hybrid with LeNet-5. Those of one cell
share seeds, so initial weights, cohorts, partitions and modes are paired.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uplink import ALPHAS, LAST_ROUNDS, RECIPE, SCHEMES, run, spread

WAYS: Mapping[str, Mapping[str, Any]] = {
    "nearest (the default)": {},
    "stochastic": {"uplink_rounding": "stochastic"},
    "nearest, error feedback": {"error_feedback": "true"},
    "stochastic, error feedback": {"uplink_rounding": "stochastic", "error_feedback": "true"},
}
PAGE = Path(__file__).parent.parent / "docs" / "results" / "error-feedback.md"
TEXT = """# Error feedback and stochastic rounding

What becomes of what rounding takes of an update. `trainer.error_feedback: true` has a client add it to its next update;
`trainer.uplink_rounding: stochastic` rounds up or down at random, so that nothing is lost in the mean over many.

Printed by `{command}`: the recipe `{recipe}` with LeNet-5 (MNIST-5k, 20
clients, 10 a round, half of them in QAT), `uplink: delta`, two local epochs, {rounds} rounds and {seeds} seeds a cell.
The metric is `val_accuracy` of the quantized model on the held-out images, its mean over the last {last} rounds: mean
over the seeds, with the smallest and the largest in brackets. `difference` is to the default, paired by seed. Bytes are
the same in all four ways.

| scheme | Dirichlet alpha | rounding | metric | difference |
|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Run all cells, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--print-only", action="store_true", help="leave the page alone")
    options = parser.parse_args()
    rows: list[str] = []
    for scheme, alpha in itertools.product(SCHEMES, ALPHAS):
        metrics: dict[str, list[float]] = {way: [] for way in WAYS}
        for seed, (way, settings) in itertools.product(range(options.seeds), WAYS.items()):
            metrics[way].append(run(scheme, alpha, {"uplink": "delta", **settings}, seed, options.rounds)[0])
        default = next(iter(metrics.values()))
        for way, values in metrics.items():
            pairs = zip(values, default, strict=True)
            difference = "" if values is default else spread([one - other for one, other in pairs], "+")
            rows.append(f"| {scheme} | {alpha:g} | {way} | {spread(values)} | {difference} |")
            print(rows[-1], flush=True)
    text = TEXT.format(
        command="python benchmarks/error_feedback.py",
        recipe=RECIPE,
        rounds=options.rounds,
        seeds=options.seeds,
        last=LAST_ROUNDS,
        rows="\n".join(rows),
    )
    if not options.print_only:
        existing = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        _, marker, reading = existing.partition("\n## Reading it\n")
        PAGE.write_text(text + marker + reading, encoding="utf-8")


if __name__ == "__main__":
    main()
