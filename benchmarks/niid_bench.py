"""A check from outside: FedAvg, FedProx, SCAFFOLD and FedNova on Fashion-MNIST, beside published figures.

    python benchmarks/niid_bench.py --rounds 10                # 12 cells, two hours and a half; then the page
    python benchmarks/niid_bench.py --rounds 50 --seeds 3 --processes 2
    python benchmarks/niid_bench.py --rounds 1 --partitions iid --print-only

What was run is a line of `benchmarks/cells/niid-bench.jsonl`, and not run again; the page, docs/results/niid-bench.md,
takes of each cell the lines with the most rounds.

The settings are those of Flower's baseline niid_bench: 10 clients, all of them in each round, 10 local epochs, batches
of 64, SGD with a learning rate of 0.01, momentum 0.9 and weight decay 1e-5; two convolutions of 6 and 16 channels.
Clients train in float32, and nothing is rounded. Needs Debian's package dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, PathologicalPartitioner
from results import PAGES, table
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

from fedhq_lightning import FederatedTrainer, PartitionedDataModule
from fedhq_lightning.data import FashionMNIST
from fedhq_lightning.federated.algorithms import Aggregator, FedAvg, FedNova, FedProx, Scaffold
from fedhq_lightning.models import Classifier
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.support.first_process import is_first_process

CLIENTS = 10
ALGORITHMS: Mapping[str, Callable[[], Aggregator]] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(mu=0.01),
    "SCAFFOLD": Scaffold,
    "FedNova": FedNova,
}
PARTITIONS: Mapping[str, tuple[str, Callable[[int], Any]]] = {
    "iid": ("IID", lambda seed: IidPartitioner(CLIENTS)),
    "dirichlet": ("Dirichlet, alpha 0.5", lambda seed: DirichletPartitioner(CLIENTS, "label", 0.5, 10, seed=seed)),
    "labels": (
        "two labels each",
        lambda seed: PathologicalPartitioner(CLIENTS, "label", 2, "first-deterministic", seed=seed),
    ),
}
PUBLISHED_ROUNDS = 50
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "iid": {"FedAvg": 89.0, "FedProx": 89.5, "SCAFFOLD": 89.5, "FedNova": 89.3},
    "dirichlet": {"FedAvg": 88.4, "FedProx": 88.6, "SCAFFOLD": 88.4, "FedNova": 88.1},
    "labels": {"FedAvg": 81.0, "FedProx": 78.8, "SCAFFOLD": 10.0, "FedNova": 70.5},
}
"""Percent on the 10,000 test images, one run each: `baselines/niid_bench/README.md` of Flower, commit 1599d01."""
CELLS = Path(__file__).parent / "cells" / "niid-bench.jsonl"
PAGE = PAGES / "niid-bench.md"
TEXT = """# A check from outside: four algorithms on Fashion-MNIST

Printed by `python benchmarks/niid_bench.py`; its cells are in `benchmarks/cells/niid-bench.jsonl`. Ours beside those of
[Flower's niid_bench](https://github.com/adap/flower/tree/main/baselines/niid_bench) (its README, one run each), which
repeats Li et al. 2022, "Federated learning on non-IID data silos": {clients} clients, all of them in each
round, 10 local epochs, batches of 64, SGD (learning rate 0.01, momentum 0.9, weight decay 1e-5), two convolutions of 6
and 16 channels, float32. Accuracy in percent on all 10,000 test images after the last round; **theirs after {theirs}
rounds, ours after as many as the table says**. Of several seeds it is the mean, with the smallest and the largest in
brackets. Partitions are drawn anew, by our seed. Seconds are wall seconds a round; each process has one thread.

{table}

Theirs puts SCAFFOLD's correction behind the momentum, ours into the gradient; with FedProx they took the best of four
mu, ours is 0.01.
"""


class Network(Classifier):
    """Two convolutions and three linear layers; 44,426 parameters for (1, 28, 28) images."""

    def __init__(self) -> None:
        super().__init__(10, 0.01, 0.9, 1e-5)
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),  # (batch, 6, 12, 12)
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),  # (batch, 16, 4, 4)
            *(nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, 10)."""
        logits: Tensor = self.layers(images)
        return logits


class WholeTest(FashionMNIST):
    """Fashion-MNIST whose 10,000 test images are one set, as others report them; nothing is chosen by them here."""

    def val_dataloader(self) -> DataLoader[Any]:
        """All of them, in file order by halves."""
        both: ConcatDataset[Any] = ConcatDataset([self.val_dataset, self.test_dataset])
        return DataLoader(both, 500, generator=torch.Generator())


class Cell(NamedTuple):
    """One run: what it was, accuracy in percent after its last round, and wall seconds a round."""

    partition: str
    algorithm: str
    seed: int
    rounds: int
    processes: int
    accuracy: float
    seconds: float


def main() -> None:
    """Run the cells that are not there yet, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=PUBLISHED_ROUNDS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--partitions", nargs="+", choices=PARTITIONS, default=list(PARTITIONS))
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--no-runs", action="store_true", help="the page from the cells that are there")
    parser.add_argument("--print-only", action="store_true", help="leave cells and page alone")
    options = parser.parse_args()
    cells = [] if options.print_only else read_cells()
    asked = itertools.product(options.partitions, options.algorithms, range(options.seeds))
    there = {cell[:3] for cell in cells if cell.rounds >= options.rounds}
    for partition, algorithm, seed in [] if options.no_runs else [each for each in asked if each not in there]:
        found = run(partition, algorithm, seed, options.rounds, options.processes)
        cells.append(Cell(partition, algorithm, seed, options.rounds, options.processes, *found))
        if is_first_process():
            print(*row([cells[-1]]), sep=" | ", flush=True)
            if not options.print_only:
                with CELLS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(cells[-1]._asdict()) + "\n")
    if not options.print_only and is_first_process():
        PAGE.write_text(page_of(cells), encoding="utf-8")


def read_cells() -> list[Cell]:
    """Those that were run before, in their order."""
    lines = CELLS.read_text(encoding="utf-8").splitlines() if CELLS.exists() else []
    return [Cell(**json.loads(line)) for line in lines]


def page_of(cells: Sequence[Cell]) -> str:
    """The page: of each partition and algorithm the cells with the most rounds."""
    rows = []
    for partition, algorithm in itertools.product(PARTITIONS, ALGORITHMS):
        found = [cell for cell in cells if cell[:2] == (partition, algorithm)]
        most = max((cell.rounds for cell in found), default=0)
        if found:
            rows.append(row([cell for cell in found if cell.rounds == most]))
    columns = ("partition", "algorithm", "rounds", "seeds", "ours", "published", "seconds a round")
    return TEXT.format(clients=CLIENTS, theirs=PUBLISHED_ROUNDS, table=table(columns, rows))


def run(
    partition: str, algorithm: str, seed: int, rounds: int, processes: int = 1, **settings: Any
) -> tuple[float, float]:
    """One run: accuracy in percent after its last round, and wall seconds a round.

    Args:
        partition: A key of `PARTITIONS`.
        algorithm: A key of `ALGORITHMS`.
        seed: Of run and partition.
        rounds: In all.
        processes: Among which clients are dealt.
        settings: Further arguments of the trainer.
    """
    data = PartitionedDataModule(WholeTest(batch_size=64), PARTITIONS[partition][1](seed))
    common = {"local_epochs": 10, "eval_every_n_rounds": rounds, "checkpoint_every_n_rounds": rounds, "logger": False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            max_rounds=rounds,
            aggregator=ALGORITHMS[algorithm](),
            monitor="val_accuracy",
            final_evaluation=False,
            export=[],
            enable_progress_bar=False,
            accelerator="cpu",
            devices=processes,
            seed=seed,
            default_root_dir=folder,
            **(common | settings),
        )
        trainer.writes_model = False
        since = time.perf_counter()
        trainer.fit(Network(), data)
        seconds = time.perf_counter() - since
        accuracy = RunDirectory(trainer.run_dir).read_rounds()[-1].metric_fp
    assert accuracy is not None
    return 100 * accuracy, seconds / rounds


def row(cells: Sequence[Cell]) -> list[str]:
    """One line of the table, of the seeds of one partition and algorithm."""
    partition, algorithm, _, rounds, *_ = cells[0]
    accuracies = [cell.accuracy for cell in cells]
    spread = f" [{min(accuracies):.1f}, {max(accuracies):.1f}]" if len(cells) > 1 else ""
    return [
        *(PARTITIONS[partition][0], algorithm, str(rounds), str(len(cells))),
        *(f"{mean(accuracies):.1f}{spread}", f"{PUBLISHED[partition][algorithm]:.1f}"),
        f"{mean(cell.seconds for cell in cells):.0f}",
    ]


if __name__ == "__main__":
    main()
