"""What the hybrid allocator itself takes, with a cohort of 1,000 clients.

    python benchmarks/allocator_time.py         # two minutes on one core; prints the table, writes its page
    python benchmarks/allocator_time.py --clients 100 --rounds 4 --print-only

All 60,000 images of Fashion-MNIST on 1,000 clients (Dirichlet over labels, alpha 0.3), each of which trains LeNet-5 for
one epoch in every round. The allocator's time is that of planning and of learning from what was logged.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import machine
import results
import torch
from flwr_datasets.partitioner import DirichletPartitioner

from fedhq_lightning import FederatedTrainer
from fedhq_lightning.callbacks import HybridAllocator
from fedhq_lightning.data import PartitionedDataModule
from fedhq_lightning.data.idx import FashionMNIST
from fedhq_lightning.models import LeNet5
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import RoundRecord

TARGET = 0.01
TEXT = """## Wall time of the allocator

`HybridAllocator(window=1)`, a cohort of {clients} clients in each of {rounds} rounds: Fashion-MNIST, LeNet-5, one local
epoch in batches of 64, fleet `mixed`, w4a8. Wall seconds of this host, one process. Target: at most 1 % of the round.

Printed by `{command}`.

{machine}

{table}

Setting up the allocator (both analyses, the coarse boundary) took {setup:.2f} s, once, before round 1.
"""


class TimedAllocator(HybridAllocator):
    """The same, with the wall seconds of its set-up."""

    setup_seconds = 0.0

    def begin(self, context: object) -> None:
        """Set up, and remember how long it took."""
        started = time.perf_counter()
        super().begin(context)  # type: ignore[arg-type]  # passed on as it came
        self.setup_seconds = time.perf_counter() - started


def main() -> None:
    """Run, print, write the section."""
    options = parse()
    torch.set_num_threads(1)
    allocator = TimedAllocator(window=1)
    rounds = run(allocator, options.clients, options.rounds)
    table = round_table(rounds)
    print(table)
    text = TEXT.format(
        clients=options.clients,
        rounds=options.rounds,
        command=" ".join(["python benchmarks/allocator_time.py", *sys.argv[1:]]),
        machine=machine.describe(threads=1),
        table=table,
        setup=allocator.setup_seconds,
    )
    if not options.print_only:
        results.write_section("allocator_time", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=results.PAGES / "allocator-time.md")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results/allocator-time.md alone")
    return parser.parse_args()


def run(allocator: HybridAllocator, clients: int, rounds: int) -> list[RoundRecord]:
    """Records of the rounds."""
    partitioner = DirichletPartitioner(
        num_partitions=clients, partition_by="label", alpha=0.3, min_partition_size=0, seed=0
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            max_rounds=rounds,
            local_epochs=1,
            scheme="w4a8",
            fleet="mixed",
            monitor="val_accuracy",
            callbacks=allocator,
            logger=False,
            accelerator="cpu",
            checkpoint_every_n_rounds=rounds,
            default_root_dir=folder,
        )
        trainer.fit(LeNet5(lr=0.02), PartitionedDataModule(FashionMNIST(batch_size=64), partitioner))
        return [record for record in RunDirectory(trainer.run_dir).stream_rounds() if record.round > 0]


def round_table(rounds: Sequence[RoundRecord]) -> str:
    """A row a round, and the median share."""
    rows = [
        [
            str(record.round),
            str(len(record.clients)),
            f"{record.wall_seconds:.1f}",
            f"{record.allocator_seconds:.3f}",
            f"{record.allocator_seconds / record.wall_seconds:.2%}",
        ]
        for record in rounds
    ]
    share = median(record.allocator_seconds / record.wall_seconds for record in rounds)
    met = "met" if share <= TARGET else "missed"
    rows.append(["median", "", "", "", f"{share:.2%} ({met})"])
    return results.table(("round", "clients", "round, wall s", "allocator, wall s", "share"), rows)


if __name__ == "__main__":
    main()
