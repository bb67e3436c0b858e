"""What models of their own bring to clients whose data differ: accuracy on what each client holds back.

    python benchmarks/personal_models.py            # 15 runs; writes a part of docs/results/personal-models.md
    python benchmarks/personal_models.py --model LeNet5 --seeds 3 --rounds 15
    python benchmarks/personal_models.py --seeds 1 --rounds 2 --print-only

Every run is the recipe mnist5k-hybrid, with its MobileNetV2, which has BatchNorm, or with LeNet-5, labels split by
Dirichlet 0.1, two local epochs and a fifth of each client's examples held back. Runs of one seed share initial weights,
cohorts, partitions and what is held back. FedAvg and its fine-tuning are one run, before and after.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from uplink import spread

from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe import files as recipe_files

RECIPE, ALPHA = "mnist5k-hybrid", 0.1
TUNED = "FedAvg, then fine-tuning"
FIGURES = ("mean", "worst_decile")
PAGE = Path(__file__).parent.parent / "docs" / "results" / "personal-models.md"
TEXT = """## {model}

Printed by `{command}`: the recipe `{recipe}`
(MNIST-5k, 20 clients, 10 a round, 2 bits, modes by `HybridAllocator`) with {model}, labels split by Dirichlet
{alpha:g}, `client_holdout: 0.2`, two local epochs and {rounds} rounds; {seeds}. {ways}
The metric is `val_accuracy` of every client's own deployed model, after the last round, on what it holds back; with
FedAvg that is everybody's. Mean over the seeds, with the smallest and the largest in brackets; virtual seconds are
those of the whole run.

| | mean over clients | worst decile | virtual seconds |
|---|---|---|---|
{rows}
"""


class Setting(NamedTuple):
    """A model, and what is compared with it.

    Attributes:
        flags: Of the command line.
        evaluates_each_round: Whether clients evaluate after each, or after the last alone.
        ways: Further arguments of the trainer by row.
        in_words: What the rows are.
    """

    flags: Sequence[str]
    evaluates_each_round: bool
    ways: Mapping[str, Mapping[str, str]]
    in_words: str


def _layers(head: str) -> dict[str, Mapping[str, str]]:
    return {
        "FedPer": {"personal_layers": f"[{head}]"},
        "FedRep": {"personal_layers": f"{{names: [{head}], first: 0.5}}"},
    }


_DITTO = {"Ditto": {"ditto": "0.1"}}
SETTINGS = {
    "MobileNetV2": Setting(
        (),
        False,
        {
            "FedAvg": {"fine_tuning": "{local_epochs: 2, lr_factor: 0.5}"},  # half: the mean rate of the rounds
            **_layers("classifier"),
            "FedBN": {"personal_layers": "batch_norm"},
            **_DITTO,
        },
        "The personal layer of FedPer\nand FedRep is the last one, of FedBN every BatchNorm; Ditto's strength is 0.1; "
        "fine-tuning is two epochs at half the learning\nrate.",
    ),
    "LeNet5": Setting(
        ("--model=fedhq_lightning.models.LeNet5", "--model.lr=0.03"),
        True,
        {"FedAvg": {}, **_layers("classifier.5"), **_DITTO},
        "The personal layer is the last one; Ditto's strength is 0.1.",
    ),
}


def main() -> None:
    """Run all ways, seed after seed; print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SETTINGS, default="MobileNetV2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--print-only", action="store_true", help="leave the page alone")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, ...]]] = {}
    setting = SETTINGS[options.model]
    for seed in range(options.seeds):
        for way in setting.ways:
            for name, figures in run(setting, way, seed, options.rounds).items():
                found.setdefault(name, []).append(figures)
                print(f"seed {seed}, {name}: {figures}", flush=True)
        rows = "\n".join(row(way, values) for way, values in found.items())
        print(rows, flush=True)
        if not options.print_only:
            write(options.model, seed + 1, options.rounds, rows)


def write(model: str, seeds: int, rounds: int, rows: str) -> None:
    """Put the table of a model into the page, in the place of the one that is there."""
    text = TEXT.format(
        command=f"python benchmarks/personal_models.py --model {model} --seeds {seeds} --rounds {rounds}",
        model=model,
        recipe=RECIPE,
        alpha=ALPHA,
        rounds=rounds,
        seeds=f"{seeds} seeds" if seeds > 1 else "one seed",
        ways=SETTINGS[model].in_words,
        rows=rows,
    )
    parts = {part.partition("\n")[0]: part for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]}
    parts[model] = text.removeprefix("## ")
    told = (f"## {parts[each].strip()}\n" for each in SETTINGS if each in parts)
    PAGE.write_text("# Personal models\n\n" + "\n".join(told), encoding="utf-8")


def run(setting: Setting, way: str, seed: int, rounds: int) -> dict[str, tuple[float, ...]]:
    """One run: both figures of the deployed models after the last round, and virtual seconds, by the name of the row.

    Args:
        setting: The model.
        way: The row.
        seed: Of run, partition and what is held back.
        rounds: In all.
    """
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "trainer.seed": seed,
            "trainer.max_rounds": rounds,
            "trainer.eval_every_n_rounds": 1 if setting.evaluates_each_round else rounds,
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
        overrides |= {f"trainer.{name}": value for name, value in setting.ways[way].items()}
        arguments = [*setting.flags, *(f"--{key}={value}" for key, value in overrides.items())]
        trainer, model, data = resolve(*recipe_files.find(RECIPE), arguments).instantiate()
        trainer.writes_model = False
        trainer.fit(model, data)
        last, summary = trainer.callback_metrics, trainer.summary
    figures = tuple(float(last[f"quantized/clients/val_accuracy/{figure}"]) for figure in FIGURES)
    seconds, tuning = float(summary["virtual_seconds"]), summary["fine_tuning"]
    if tuning is None:
        return {way: (*figures, seconds)}
    after = (float(tuning["after"]["quantized"][figure]) for figure in FIGURES)
    return {way: (*figures, seconds - tuning["virtual_seconds"]), TUNED: (*after, seconds)}


def row(way: str, values: list[tuple[float, ...]]) -> str:
    """One line of the table."""
    *figures, seconds = zip(*values, strict=True)
    return f"| {way} | {' | '.join(spread(list(each)) for each in figures)} | {mean(seconds):,.0f} |"


if __name__ == "__main__":
    main()
