"""What models of their own bring to clients whose data differ: accuracy on what each client holds back.

    python benchmarks/personal_models.py            # 15 runs; writes docs/results/personal-models.md after each seed
    python benchmarks/personal_models.py --seeds 1 --rounds 2 --print-only

Every run is the recipe mnist5k-hybrid, whose MobileNetV2 has BatchNorm, with labels split by Dirichlet 0.1, two local
epochs and a fifth of each client's examples held back. Runs of one seed share initial weights, cohorts, partitions and
what is held back. FedAvg and its fine-tuning are one run, before and after.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from uplink import spread

from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe import files as recipe_files

RECIPE, ALPHA, HEAD = "mnist5k-hybrid", 0.1, "classifier"
TUNED = "FedAvg, then fine-tuning"
WAYS: Mapping[str, Mapping[str, str]] = {
    "FedAvg": {"fine_tuning": "{local_epochs: 2, lr_factor: 0.5}"},  # half: the mean rate of the rounds
    "FedPer": {"personal_layers": f"[{HEAD}]"},
    "FedRep": {"personal_layers": f"{{names: [{HEAD}], first: 0.5}}"},
    "FedBN": {"personal_layers": "batch_norm"},
    "Ditto": {"ditto": "0.1"},
}
FIGURES = ("mean", "worst_decile")
PAGE = Path(__file__).parent.parent / "docs" / "results" / "personal-models.md"
TEXT = """# Personal models

Printed by `{command}`: the recipe `{recipe}`
(MNIST-5k, 20 clients, 10 a round, MobileNetV2 with BatchNorm at 2 bits, modes by `HybridAllocator`), labels split by
Dirichlet {alpha:g}, `client_holdout: 0.2`, two local epochs and {rounds} rounds; {seeds}. The personal layer of FedPer
and FedRep is the last one, of FedBN every BatchNorm; Ditto's strength is 0.1; fine-tuning is two epochs at half the
learning rate. The metric is `val_accuracy` of every client's own deployed model, after the last round, on what it holds
back; with FedAvg that is everybody's. Mean over the seeds, with the smallest and the largest in brackets; virtual
seconds are those of the whole run.

| | mean over clients | worst decile | virtual seconds |
|---|---|---|---|
{rows}
"""


def main() -> None:
    """Run all ways, seed after seed; print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--print-only", action="store_true", help="leave the page alone")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(options.seeds):
        for way, settings in WAYS.items():
            for name, figures in run(way, settings, seed, options.rounds).items():
                found.setdefault(name, []).append(figures)
                print(f"seed {seed}, {name}: {figures}", flush=True)
        rows = "\n".join(row(way, values) for way, values in found.items())
        print(rows, flush=True)
        if not options.print_only:
            text = TEXT.format(
                command=f"python benchmarks/personal_models.py --seeds {seed + 1} --rounds {options.rounds}",
                recipe=RECIPE,
                alpha=ALPHA,
                rounds=options.rounds,
                seeds=f"{seed + 1} seeds" if seed else "one seed",
                rows=rows,
            )
            PAGE.write_text(text, encoding="utf-8")


def run(way: str, settings: Mapping[str, str], seed: int, rounds: int) -> dict[str, tuple[float, ...]]:
    """One run: both figures of the deployed models, and virtual seconds, by the name of the row.

    Args:
        way: The row.
        settings: Further arguments of the trainer.
        seed: Of run, partition and what is held back.
        rounds: In all; clients evaluate after the last, so that this is the one that is deployed.
    """
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "trainer.seed": seed,
            "trainer.max_rounds": rounds,
            "trainer.eval_every_n_rounds": rounds,
            "trainer.local_epochs": 2,
            "trainer.logger": "false",
            "trainer.enable_progress_bar": "false",
            "trainer.monitor": "clients/val_accuracy/mean",
            "trainer.default_root_dir": folder,
            "data.init_args.client_holdout": 0.2,
            "data.init_args.holdout_seed": seed,
            "data.init_args.partitioner.init_args.alpha": ALPHA,
            "data.init_args.partitioner.init_args.seed": seed,
        }
        overrides |= {f"trainer.{name}": value for name, value in settings.items()}
        arguments = [f"--{key}={value}" for key, value in overrides.items()]
        trainer, model, data = resolve(*recipe_files.find(RECIPE), arguments).instantiate()
        trainer.writes_model = False
        trainer.fit(model, data)
        summary = trainer.summary
    seconds, tuning = float(summary["virtual_seconds"]), summary["fine_tuning"]
    if tuning is None:
        return {way: (*figures_of(summary["on_clients"]), seconds)}
    return {
        way: (*figures_of(tuning["before"]), seconds - tuning["virtual_seconds"]),
        TUNED: (*figures_of(tuning["after"]), seconds),
    }


def figures_of(told: Mapping[str, Any]) -> tuple[float, ...]:
    """Both figures, of the deployed models."""
    return tuple(float(told["quantized"][figure]) for figure in FIGURES)


def row(way: str, values: list[tuple[float, ...]]) -> str:
    """One line of the table."""
    *figures, seconds = zip(*values, strict=True)
    return f"| {way} | {' | '.join(spread(list(each)) for each in figures)} | {mean(seconds):,.0f} |"


if __name__ == "__main__":
    main()
