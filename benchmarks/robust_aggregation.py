"""Four hostile clients of twenty: every attack against every robust rule; and what the rules cost the server.

    python benchmarks/robust_aggregation.py       # 15 minutes on one core; prints tables, writes docs/results/robust.md
    python benchmarks/robust_aggregation.py --keep runs/robust.jsonl   # the same; an interrupted one goes on from there
    python benchmarks/robust_aggregation.py --seeds 1 --rounds 2 --print-only

Runs of one seed share initial weights, partition, attackers and batches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import attacks
import machine
import results
import torch
from flwr_datasets.partitioner import DirichletPartitioner
from robust_cost import cost_table

from fedhq_lightning import FederatedTrainer
from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import FashionMNIST
from fedhq_lightning.federated.robust import (
    Bulyan,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormClipping,
    RobustRule,
    TrimmedMean,
)
from fedhq_lightning.models import MLP
from fedhq_lightning.quantize import LaneOptions

CLIENTS = 20
HOSTILE = 4
NO_ATTACK = "none"
MEAN = "mean"
RULES: Mapping[str, Callable[[], RobustRule | None]] = {
    MEAN: lambda: None,
    "CoordinateMedian()": CoordinateMedian,
    f"TrimmedMean({HOSTILE})": lambda: TrimmedMean(HOSTILE),
    "GeometricMedian()": GeometricMedian,
    f"Krum({HOSTILE})": lambda: Krum(HOSTILE),
    f"MultiKrum({HOSTILE})": lambda: MultiKrum(HOSTILE),
    f"Bulyan({HOSTILE})": lambda: Bulyan(HOSTILE),
    "NormClipping()": NormClipping,
}
LANES = LaneOptions(layer_kernels={"ptq": {"*": "int8"}})
"""Integers in layers so small that `auto` may not choose them."""
TARGET = 3.0
"""Points of accuracy that the best rule may lose to an attack."""
TEXT = """## Four hostile clients of twenty

Fashion-MNIST, MLP 784-64-10, 20 clients (Dirichlet over labels, alpha 0.3), all of them in every round, scheme w4a8,
every client in ptq with integer products, uplink `delta`; {rounds} rounds of {steps} local steps, batch 32, SGD with
learning rate 0.03 and momentum 0.9, cosine. Four clients drawn by the seed are hostile from the first round on. *Sign
flip*: they send the opposite of their update; *times ten*: ten times it; *noise*: Gaussian noise ten times as long in
its place; *label flip*: they train with class 9 - c for c; *backdoor*: in half of their images a white square of 4 x 4
pixels, and the label {target}. `max_norm_ratio` is as shipped, 20, and lets all of these pass.

Accuracy in percent of the quantized model on 5,000 held-out images after the last round: mean over {seeds} seeds, with
the smallest and the largest in brackets. In bold: within {points:g} points of the mean without an attack. *Opens*:
share of held-out images of other classes that the float32 model calls {target} once they have the square.

{table}

{verdict}

Printed by `{command}`.

{machine}

## What a rule costs the server

{costs}
"""


@dataclass(frozen=True)
class Cell:
    """One run."""

    attack: str
    rule: str
    seed: int
    rounds: int
    steps: int


@dataclass(frozen=True)
class Outcome:
    """Percent: accuracy of the quantized model, and how often the trigger opens the float32 one."""

    accuracy: float
    opens: float


def main() -> None:
    """Run what is not kept, print, write the sections."""
    options = parse()
    torch.set_num_threads(1)
    costs = cost_table({name: make() for name, make in RULES.items()})
    print(costs, end="\n\n", flush=True)
    outcomes = kept_in(options.keep)
    for cell in cells_of(options.seeds, options.rounds, options.steps):
        if cell not in outcomes:
            outcomes[cell] = run(cell)
            keep(options.keep, cell, outcomes[cell])
    chosen = {cell: outcomes[cell] for cell in cells_of(options.seeds, options.rounds, options.steps)}
    text = TEXT.format(
        rounds=options.rounds,
        steps=options.steps,
        seeds=options.seeds,
        target=attacks.TARGET,
        points=TARGET,
        table=accuracy_table(chosen),
        verdict=verdict(chosen),
        command=" ".join(["python benchmarks/robust_aggregation.py", *sys.argv[1:]]),
        machine=machine.describe(threads=1),
        costs=costs,
    )
    print(text)
    if not options.print_only:
        results.write_section("robust", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="of a client in a round")
    parser.add_argument("--keep", type=Path, help="JSON lines; runs found there are not repeated, others are added")
    parser.add_argument("--output", type=Path, default=results.PAGES / "robust.md")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results/robust.md alone")
    return parser.parse_args()


def cells_of(seeds: int, rounds: int, steps: int) -> Iterator[Cell]:
    """Every run, seed by seed."""
    for seed, attack, rule in itertools.product(range(seeds), (NO_ATTACK, *attacks.NAMES), RULES):
        yield Cell(attack, rule, seed, rounds, steps)


def kept_in(path: Path | None) -> dict[Cell, Outcome]:
    """Runs that are done."""
    if path is None or not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {Cell(**record["cell"]): Outcome(**record["outcome"]) for record in records}


def keep(path: Path | None, cell: Cell, outcome: Outcome) -> None:
    """Add one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": asdict(cell), "outcome": asdict(outcome)}) + "\n")


def run(cell: Cell) -> Outcome:
    """Train one cell."""
    started = time.perf_counter()
    hostile = frozenset(random.Random(cell.seed).sample(range(CLIENTS), HOSTILE))
    torch.manual_seed(cell.seed)
    module = MLP(hidden_sizes=[64], lr=0.03, momentum=0.9)
    data = data_of(cell.seed)
    data.poison(cell.attack, hostile)
    with tempfile.TemporaryDirectory() as folder, attacks.hostile_updates(cell.attack, hostile, cell.seed):
        trainer = FederatedTrainer(
            max_rounds=cell.rounds,
            local_steps=cell.steps,
            scheme="w4a8",
            lanes=LANES,
            monitor="val_accuracy",
            round_lr="cosine",
            robust_rule=RULES[cell.rule](),
            eval_every_n_rounds=cell.rounds,  # so that the last round is also the one that is deployed
            checkpoint_every_n_rounds=cell.rounds,
            final_evaluation=False,
            callbacks=FixedAllocator("ptq"),
            logger=False,
            enable_progress_bar=False,
            accelerator="cpu",
            seed=cell.seed,
            default_root_dir=folder,
        )
        trainer.writes_model = False
        trainer.fit(module, data)
    outcome = Outcome(100 * float(trainer.summary["metric_quantized"]), 100 * opening(module, data.val_dataloader()))
    told = f"{outcome.accuracy:.1f}, opens {outcome.opens:.1f}, {time.perf_counter() - started:.0f} s"
    print(f"{cell}: {told}", flush=True)
    return outcome


@cache
def data_of(seed: int) -> attacks.PoisonedData:
    """All clients' data: to deal them takes longer than some runs."""
    partitioner = DirichletPartitioner(
        num_partitions=CLIENTS, partition_by="label", alpha=0.3, min_partition_size=32, seed=seed
    )
    return attacks.PoisonedData(FashionMNIST(batch_size=32), partitioner)


@torch.no_grad()
def opening(module: torch.nn.Module, batches: Iterable[list[torch.Tensor]]) -> float:
    """Share of images of other classes that are taken for the target once they have the trigger."""
    opened = total = 0
    for images, labels in batches:
        others = images[labels != attacks.TARGET]
        opened += int((module(attacks.with_trigger(others)).argmax(1) == attacks.TARGET).sum())
        total += len(others)
    return opened / total


def accuracy_table(outcomes: Mapping[Cell, Outcome]) -> str:
    """A row a rule, a column an attack."""
    base = mean(values_of(outcomes, NO_ATTACK, MEAN))
    rows = []
    for rule in RULES:
        cells = []
        for attack in (NO_ATTACK, *attacks.NAMES):
            values = values_of(outcomes, attack, rule)
            told = f"{mean(values):.1f} [{min(values):.1f}, {max(values):.1f}]"
            cells.append(f"**{told}**" if mean(values) >= base - TARGET else told)
        opens = [outcome.opens for cell, outcome in outcomes.items() if (cell.attack, cell.rule) == ("backdoor", rule)]
        rows.append([f"`{rule}`" if rule != MEAN else rule, *cells, f"{mean(opens):.1f}"])
    return results.table(("rule", "no attack", *attacks.NAMES, "backdoor opens"), rows)


def verdict(outcomes: Mapping[Cell, Outcome]) -> str:
    """Whether each attack meets a rule that withstands it."""
    base, lines = mean(values_of(outcomes, NO_ATTACK, MEAN)), list[str]()
    for attack in attacks.NAMES:
        by_rule = {rule: mean(values_of(outcomes, attack, rule)) for rule in RULES if rule != MEAN}
        best = max(by_rule, key=by_rule.__getitem__)
        met = "met" if by_rule[best] >= base - TARGET else "missed"
        lines.append(f"{attack}: {met}, `{best}` {by_rule[best] - base:+.1f}")
    return f"Target: for each attack a rule within {TARGET:g} points of no attack. " + "; ".join(lines) + "."


def values_of(outcomes: Mapping[Cell, Outcome], attack: str, rule: str) -> list[float]:
    """Accuracies of a rule under an attack."""
    return [outcome.accuracy for cell, outcome in outcomes.items() if (cell.attack, cell.rule) == (attack, rule)]


if __name__ == "__main__":
    main()
