"""Does all-QAT collapse where clients' labels differ most, and what has the weight grid to do with it?

    python benchmarks/stability.py         # 15 minutes on one core; prints the tables, writes docs/results/stability.md
    python benchmarks/stability.py --keep runs/stability.jsonl    # the same; an interrupted one goes on from there
    python benchmarks/stability.py --seeds 1 --rounds 2 --print-only

First without training: what rounding the same weights again and again does to them. Then federated runs in which every
client trains in the same mode. Runs of one seed share initial weights, partition and cohorts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import machine
import results
import torch
from flwr_datasets.partitioner import DirichletPartitioner
from torch import Tensor, nn
from weight_grids import weight_grid

from fedhq_lightning import FederatedTrainer
from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import PartitionedDataModule
from fedhq_lightning.data.mnist5k import MNIST5k
from fedhq_lightning.models import LeNet5
from fedhq_lightning.quantize import LaneOptions, LayerScheme, round_to_grid
from fedhq_lightning.types import MODES, Mode

SETTINGS = (("w3a8", 0.05), ("w3a4", 0.1), ("w2a8", 0.05))
"""Schemes and Dirichlet alphas: the two at which an early sketch of all-QAT collapsed, and a harder one."""
ABLATION = (("w2a8", 0.05),)
ON_THE_GRID: tuple[Mode, ...] = ("fp", "qat")
LANES = LaneOptions(layer_kernels={"ptq": {"*": "int8"}}, qat_backward="bf16")
"""PTQ in int8 in layers so small that `auto` may not choose it; QAT as when the page was made."""
GRIDS = ("max scale", "no search", "search")
GROWTH_BITS = (4, 3, 2)
NOISE = 0.1
"""Of a client's training in the growth table: standard deviation, in units of the largest initial weight."""
TEXT = """## Stability of repeated rounding and of all-QAT runs

With `uplink: weights` every client's model is rounded to the grid in every round. Three grids are compared: `max scale`
is torchao's default symmetric scale (the largest magnitude over half the range, so -7.5 steps round to -8 at 4 bits),
`no search` the smallest scale at which no weight leaves the range, `search` takes a share of that where the squared
error is smaller. Shipped is `search` up to 4 bits and `no search` above; the others are patched in by the script.

Printed by `{command}`.

{machine}

### Rounding alone

The initial weights of a linear layer with 400 inputs and 120 outputs, after {rounds} rounds: their largest magnitude
and, in brackets, their norm, both in units of the same without rounding. *Alone*: rounded, and nothing else. *Ten
clients*: in each round ten copies get noise of their own ({noise:g} of the largest initial weight), are rounded and
averaged. Means over {growth_seeds} seeds.

{growth}

### Federated runs in one mode

MNIST-5k, LeNet-5, 20 clients (Dirichlet over labels), 10 a round, 2 local epochs, batch 32, SGD with learning rate 0.03
and momentum 0.9, cosine over {rounds} rounds, `uplink: weights`, first and last layer at 8 bits. Accuracy of the
quantized model on 1,000 held-out images after the last round, not after the best: mean, and in brackets every seed from
0 on. `kernel: auto` would train layers as small as these in fp32, and PTQ would be fp to the last bit; so here PTQ
computes all its layers in int8.

{runs}
"""


@dataclass(frozen=True)
class Cell:
    """One run: every client in one mode."""

    scheme: str
    alpha: float
    mode: Mode
    grid: str
    seed: int
    rounds: int


def main() -> None:
    """Measure, print, write the section."""
    options = parse()
    torch.set_num_threads(1)
    growth = growth_table(options.seeds, options.rounds)
    print(growth, end="\n\n", flush=True)
    kept = Kept(options.keep)
    cells = list(cells_of(options.seeds, options.ablation_seeds, options.rounds))
    accuracies = {cell: kept.get(cell) if cell in kept else kept.add(cell, run(cell)) for cell in cells}
    runs = run_table(accuracies)
    print(runs)
    text = TEXT.format(
        command=" ".join(["python benchmarks/stability.py", *sys.argv[1:]]),
        machine=machine.describe(threads=1),
        rounds=options.rounds,
        noise=NOISE,
        growth_seeds=options.seeds,
        growth=growth,
        runs=runs,
    )
    if not options.print_only:
        results.write_section("stability", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablation-seeds", type=int, default=3, help="of the runs on the grid with the max scale")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--keep", type=Path, help="JSON lines; runs found there are not repeated, others are added")
    parser.add_argument("--output", type=Path, default=results.PAGES / "stability.md")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results/stability.md alone")
    return parser.parse_args()


def cells_of(seeds: int, ablation_seeds: int, rounds: int) -> Iterator[Cell]:
    """Every run of the benchmark, in the order of its table."""
    for (scheme, alpha), mode, seed in itertools.product(SETTINGS, MODES, range(seeds)):
        yield Cell(scheme, alpha, mode, "shipped", seed, rounds)
    # The scale acts through the uplink in fp, and through the lane too in qat.
    for (scheme, alpha), mode, seed in itertools.product(ABLATION, ON_THE_GRID, range(ablation_seeds)):
        yield Cell(scheme, alpha, mode, "max scale", seed, rounds)


class Kept:
    """Accuracies of runs that are done, in a file if one is given.

    Args:
        path: JSON lines, made when the first run ends; or None.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._accuracies: dict[Cell, float] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                accuracy = record.pop("accuracy")
                self._accuracies[Cell(**record)] = accuracy

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._accuracies

    def get(self, cell: Cell) -> float:
        """The accuracy of a run that is there."""
        return self._accuracies[cell]

    def add(self, cell: Cell, accuracy: float) -> float:
        """Keep the accuracy of a run, and give it back."""
        self._accuracies[cell] = accuracy
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cell) | {"accuracy": accuracy}) + "\n")
        return accuracy


def run(cell: Cell) -> float:
    """Train one cell; accuracy of the quantized model after the last round, in percent."""
    started = time.perf_counter()
    torch.manual_seed(cell.seed)
    module = LeNet5(lr=0.03, momentum=0.9)
    partitioner = DirichletPartitioner(
        num_partitions=20, partition_by="label", alpha=cell.alpha, min_partition_size=0, seed=cell.seed
    )
    data = PartitionedDataModule(MNIST5k(batch_size=32), partitioner)
    with tempfile.TemporaryDirectory() as folder, weight_grid(cell.grid):
        trainer = FederatedTrainer(
            max_rounds=cell.rounds,
            clients_per_round=10,
            local_epochs=2,
            scheme=cell.scheme,
            lanes=LANES,
            uplink="weights",
            monitor="val_accuracy",
            round_lr="cosine",
            eval_every_n_rounds=cell.rounds,  # so that the last round is also the best, which the summary is about
            checkpoint_every_n_rounds=cell.rounds,
            callbacks=FixedAllocator(cell.mode),
            logger=False,
            enable_progress_bar=False,
            accelerator="cpu",
            seed=cell.seed,
            default_root_dir=folder,
        )
        trainer.fit(module, data)
    accuracy = 100 * float(trainer.summary["metric_quantized"])
    print(f"{cell}: {accuracy:.1f}, {time.perf_counter() - started:.0f} s", flush=True)
    return accuracy


def run_table(accuracies: Mapping[Cell, float]) -> str:
    """Rows by grid, scheme and alpha, in the order given; columns by mode.

    Args:
        accuracies: Percent of every run.
    """
    groups: dict[tuple[str, str, float], dict[Mode, list[float]]] = {}
    for cell, accuracy in accuracies.items():
        groups.setdefault((cell.grid, cell.scheme, cell.alpha), {}).setdefault(cell.mode, []).append(accuracy)
    rows = []
    for (grid, scheme, alpha), by_mode in groups.items():
        cells = [all_of(by_mode[mode]) if mode in by_mode else "" for mode in MODES]
        rows.append([grid, scheme, f"{alpha:g}", *cells])
    return results.table(("grid", "scheme", "Dirichlet alpha", *(f"all-{mode}" for mode in MODES)), rows)


def all_of(values: Sequence[float]) -> str:
    """Mean, and every value."""
    return f"{mean(values):.1f} [{', '.join(f'{value:.1f}' for value in values)}]"


def growth_table(seeds: int, rounds: int) -> str:
    """Growth of weights on every grid, alone and among clients."""
    rows = []
    for bits, name in itertools.product(GROWTH_BITS, GRIDS):
        cells = []
        for clients, noise in ((1, 0.0), (10, NOISE)):
            with weight_grid(name):
                found = [growth(initial_weight(seed), bits, rounds, clients, noise, seed) for seed in range(seeds)]
            cells.append(f"{mean(each[0] for each in found):.2f} ({mean(each[1] for each in found):.2f})")
        rows.append([str(bits), name, *cells])
    return results.table(("bits", "grid", "alone", "ten clients"), rows)


def initial_weight(seed: int) -> Tensor:
    """(120, 400), as LeNet-5's largest layer starts."""
    torch.manual_seed(seed)
    return nn.Linear(400, 120).weight.detach()


def growth(
    weight: Tensor, bits: int, rounds: int, clients: int = 1, noise: float = 0.0, seed: int = 0
) -> tuple[float, float]:
    """What repeated rounding does to weights.

    Args:
        weight: (out, in).
        bits: Of the grid, one scale per output channel.
        rounds: How often.
        clients: Copies that are rounded in a round, then averaged.
        noise: Standard deviation of what is added to each copy before, in units of the largest weight.
        seed: Of the noise.

    Returns:
        Largest magnitude and norm at the end, each over that of weights to which the same was done without rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    deviation = noise * weight.abs().max()
    rounded = unrounded = weight
    for _ in range(rounds):
        steps = deviation * torch.randn((clients, *weight.shape), generator=generator)
        rounded = torch.stack([round_to_grid(rounded + step, LayerScheme(bits)) for step in steps]).mean(0)
        unrounded = unrounded + steps.mean(0)
    return float(rounded.abs().max() / unrounded.abs().max()), float(rounded.norm() / unrounded.norm())


if __name__ == "__main__":
    main()
