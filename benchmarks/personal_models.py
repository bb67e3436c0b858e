"""What models of their own bring to clients whose data differ: accuracy on what each client holds back.

    python benchmarks/personal_models.py            # 12 runs; writes docs/results/personal-models.md
    python benchmarks/personal_models.py --seeds 1 --rounds 2 --print-only

Every run is the recipe mnist5k-hybrid with LeNet-5, labels split by Dirichlet 0.1, two local epochs and a fifth of each
client's examples held back. Runs of one seed share initial weights, cohorts, partitions, modes and what is held back.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from uplink import RECIPE, SETTING, spread

from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe import files as recipe_files

ALPHA, HEAD = 0.1, "classifier.5"
WAYS: Mapping[str, Mapping[str, str]] = {
    "FedAvg": {},
    "FedPer": {"personal_layers": f"[{HEAD}]"},
    "FedRep": {"personal_layers": f"{{names: [{HEAD}], first: 0.5}}"},
    "Ditto": {"ditto": "0.1"},
}
FIGURES = ("mean", "worst_decile")
PAGE = Path(__file__).parent.parent / "docs" / "results" / "personal-models.md"
TEXT = """# Personal models

Printed by `{command}`: the recipe `{recipe}` with LeNet-5 (MNIST-5k, 20 clients,
10 a round, half of them in QAT), labels split by Dirichlet {alpha:g}, `client_holdout: 0.2`, two local epochs, {rounds}
rounds and {seeds} seeds. The personal layer is the last one; Ditto's strength is 0.1. The metric is `val_accuracy` of
every client's own deployed model, after the last round, on what it holds back; with FedAvg that is everybody's. Mean
over the seeds, with the smallest and the largest in brackets; virtual seconds are those of the whole run.

| | mean over clients | worst decile | virtual seconds |
|---|---|---|---|
{rows}
"""


def main() -> None:
    """Run all ways, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--print-only", action="store_true", help="leave the page alone")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for seed, (way, settings) in itertools.product(range(options.seeds), WAYS.items()):
        found[way].append(run(settings, seed, options.rounds))
    rows = "\n".join(row(way, values) for way, values in found.items())
    print(rows)
    if not options.print_only:
        text = TEXT.format(
            command=f"python benchmarks/personal_models.py --seeds {options.seeds} --rounds {options.rounds}",
            recipe=RECIPE,
            alpha=ALPHA,
            rounds=options.rounds,
            seeds=options.seeds,
            rows=rows,
        )
        PAGE.write_text(text, encoding="utf-8")


def run(settings: Mapping[str, str], seed: int, rounds: int) -> tuple[float, ...]:
    """One run: both figures of the deployed models, and virtual seconds.

    Args:
        settings: Further arguments of the trainer.
        seed: Of run, partition and what is held back.
        rounds: In all.
    """
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "trainer.seed": seed,
            "trainer.max_rounds": rounds,
            "trainer.logger": "false",
            "trainer.enable_progress_bar": "false",
            "trainer.final_evaluation": "false",
            "trainer.monitor": "clients/val_accuracy/mean",
            "trainer.default_root_dir": folder,
            "data.init_args.client_holdout": 0.2,
            "data.init_args.holdout_seed": seed,
            "data.init_args.partitioner.init_args.alpha": ALPHA,
            "data.init_args.partitioner.init_args.seed": seed,
        }
        overrides |= {f"trainer.{name}": value for name, value in settings.items()}
        arguments = [*SETTING, *(f"--{key}={value}" for key, value in overrides.items())]
        trainer, model, data = resolve(*recipe_files.find(RECIPE), arguments).instantiate()
        trainer.writes_model = False
        trainer.fit(model, data)
        last = trainer.callback_metrics
    figures = (float(last[f"quantized/clients/val_accuracy/{figure}"]) for figure in FIGURES)
    return (*figures, float(trainer.summary["virtual_seconds"]))


def row(way: str, values: list[tuple[float, ...]]) -> str:
    """One line of the table."""
    *figures, seconds = zip(*values, strict=True)
    return f"| {way} | {' | '.join(spread(list(each)) for each in figures)} | {mean(seconds):,.0f} |"


if __name__ == "__main__":
    main()
