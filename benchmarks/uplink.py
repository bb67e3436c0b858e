"""Uplink `weights` against `delta`: quantized metric and bytes, on two schemes and two label skews.

    python benchmarks/uplink.py            # about 18 minutes on one core; prints the table and writes docs/uplink.md
    python benchmarks/uplink.py --seeds 1 --rounds 2 --print-only

Every run is the recipe mnist5k-hybrid with LeNet-5, two local epochs and the values of its row. Runs of one cell share
seeds, so initial weights, cohorts, partitions and modes are paired.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.run.directory import RunDirectory

RECIPE = "mnist5k-hybrid"
SETTING = (
    *("--model=fedhq_lightning.models.LeNet5", "--model.lr=0.03"),
    *("--trainer.local_epochs=2", "--trainer.eval_every_n_rounds=1"),
    *("--trainer.callbacks=FixedAllocator", "--trainer.callbacks.allocation=0.5"),
)
SCHEMES = ("w4a8", "w2a8")
ALPHAS = (0.1, 5.0)
UPLINKS = ("weights", "delta")
LAST_ROUNDS = 3
PAGE = Path(__file__).parent.parent / "docs" / "uplink.md"
TEXT = """# Uplink: weights or delta

What a client sends: `uplink: delta` (default) sends the difference between its local model and the global model it
received, rounded to the scheme's bits; `uplink: weights` sends its local model, rounded to the scheme's grid.

Printed by `{command}`, with the recipe `{recipe}` and LeNet-5 (MNIST-5k, 20 clients, 10 a
round, half of them in QAT), {rounds} rounds and {seeds} seeds a cell. The metric is `val_accuracy` of the quantized
model on the held-out images, its mean over the last {last} rounds: mean over the seeds, with the smallest and the
largest in brackets. `difference` is delta minus weights, paired by seed. `bytes` is the mean payload of one client in
one round; the float32 model is {float_bytes:,} bytes.

{table}

{reading}
"""


def main() -> None:
    """Run all cells, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--print-only", action="store_true", help="leave docs/uplink.md alone")
    options = parser.parse_args()
    rows = []
    float_bytes = 0
    for scheme, alpha in itertools.product(SCHEMES, ALPHAS):
        results = {
            uplink: [run(scheme, alpha, {"uplink": uplink}, seed, options.rounds) for seed in range(options.seeds)]
            for uplink in UPLINKS
        }
        float_bytes = results["weights"][0][2]
        rows.append(
            row(scheme, alpha, {uplink: [(each[0], each[1]) for each in results[uplink]] for uplink in UPLINKS})
        )
        print(rows[-1], flush=True)
    columns = ("scheme", "Dirichlet alpha", "weights", "delta", "difference", "bytes, weights", "bytes, delta")
    table = "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])
    print(table)
    if not options.print_only:
        existing = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        _, marker, reading = existing.partition("## Reading it\n")
        PAGE.write_text(
            TEXT.format(
                command="python benchmarks/uplink.py",
                recipe=RECIPE,
                rounds=options.rounds,
                seeds=options.seeds,
                last=LAST_ROUNDS,
                float_bytes=float_bytes,
                table=table,
                reading=(marker + reading).strip(),
            ),
            encoding="utf-8",
        )


def run(scheme: str, alpha: float, settings: Mapping[str, Any], seed: int, rounds: int) -> tuple[float, float, int]:
    """One run: quantized metric, uplink bytes per client and round, float32 bytes of the model.

    Args:
        scheme: The run's.
        alpha: Of the partition.
        settings: Further arguments of the trainer.
        seed: Of run and partition.
        rounds: In all.
    """
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "trainer.scheme": scheme,
            "trainer.seed": seed,
            "trainer.max_rounds": rounds,
            "trainer.logger": "false",
            "trainer.enable_progress_bar": "false",
            "trainer.default_root_dir": folder,
            "data.init_args.partitioner.init_args.alpha": alpha,
            "data.init_args.partitioner.init_args.seed": seed,
        }
        overrides |= {f"trainer.{name}": value for name, value in settings.items()}
        arguments = [*SETTING, *(f"--{key}={value}" for key, value in overrides.items())]
        trainer, model, data = resolve(*recipe_files.find(RECIPE), arguments).instantiate()
        trainer.writes_model = False
        trainer.fit(model, data)
        records = RunDirectory(trainer.run_dir).read_rounds()[1:]
    last = [record.metric_quantized for record in records[-LAST_ROUNDS:]]
    metric = mean(each for each in last if each is not None)
    clients = [client for record in records for client in record.clients]
    return metric, mean(client.uplink_bytes for client in clients), clients[0].downlink_bytes


def row(scheme: str, alpha: float, results: dict[str, list[tuple[float, float]]]) -> str:
    """One line of the table."""
    metrics = {uplink: [metric for metric, _ in results[uplink]] for uplink in UPLINKS}
    differences = [delta - weights for weights, delta in zip(metrics["weights"], metrics["delta"], strict=True)]
    cells = [scheme, f"{alpha:g}", *(spread(metrics[uplink]) for uplink in UPLINKS), spread(differences, "+")]
    cells += [f"{mean(size for _, size in results[uplink]):,.0f}" for uplink in UPLINKS]
    return "| " + " | ".join(cells) + " |"


def spread(values: list[float], sign: str = "") -> str:
    """Mean with smallest and largest."""
    return f"{mean(values):{sign}.4f} [{min(values):{sign}.4f}, {max(values):{sign}.4f}]"


if __name__ == "__main__":
    main()
