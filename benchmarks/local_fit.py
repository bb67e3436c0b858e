"""What a local fit takes in a bare loop, under `ClientTrainer` and under a `lightning.Trainer` of its own.

    python benchmarks/local_fit.py

And what a client of a round takes beside its steps. Writes `docs/results/local-fit.md`; `--print-only` shows it
without writing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import machine
import numpy as np
import results
import torch
from flwr_datasets.partitioner import IidPartitioner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning import FederatedTrainer, PartitionedDataModule
from fedhq_lightning.callbacks import RoundCallback
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.models import MLP, LeNet5
from fedhq_lightning.models.classifier import Classifier
from fedhq_lightning.profiling.timing import Timing, time_in_turns
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.support.collectives import lightning_quiet
from fedhq_lightning.types import ClientId, FitOptions, Mode

STEPS, ROUNDS, BLOCK_SECONDS = 20, 15, 0.3
CLIENTS, CLIENT_BATCHES, CLIENT_ROUNDS = 100, 5, 10
COLUMNS = (
    *("model, batch", "bare loop", "`ClientTrainer`", "`lightning.Trainer`"),
    *("a step: bare", "`ClientTrainer`", "over bare"),
)
CLIENT_COLUMNS = ("model, batch", "a client", "its steps in a bare loop", "the rest")
TEXT = """
## A local fit of {steps} steps

{rounds} blocks of each, in turn; medians of milliseconds of the one thread's processor time, which others on the
machine lengthen less than wall time; fp32. The bare loop has a list of batches,
in memory, and calls the layers, the loss, its backward and the optimizer, of the same kind; the other two have a
shuffling `DataLoader` over the same examples, and the module's hooks and logs. The last column is how much longer
`ClientTrainer` takes for a step: median over the blocks, and their quartiles. A new `lightning.Trainer` for each fit,
as each client of a round would need one, has neither logger, checkpoints nor display.

{machine}

{table}

## A client with {batches} batches

Medians of the same milliseconds over {clients} clients in each of {client_rounds} rounds. A client is weights in,
loader, optimizer, steps, payload out, record. The bare loop takes as many steps on as many batches, after each round.

{client_table}
"""


class PflNet(Classifier):
    """The CNN of pfl-research's benchmarks on CIFAR-10.

    Source: `simple_cnn` in github.com/apple/pfl-research, benchmarks/model/pytorch/cnn.py.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, kernel_size=3),  # (batch, 32, 30, 30)
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3),  # (batch, 64, 28, 28)
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(64 * 14 * 14, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, 10), of (batch, 3, 32, 32) images."""
        logits: Tensor = self.layers(images)
        return logits


@dataclass(frozen=True)
class Case:
    """A model and its batches."""

    make: Callable[[], Classifier]
    shape: tuple[int, int, int]
    batch_size: int

    def examples(self, num_batches: int) -> tuple[Tensor, Tensor]:
        """Images and labels, of as many full batches."""
        count = num_batches * self.batch_size
        return torch.randn(count, *self.shape), torch.randint(10, (count,))

    def batches(self, num_batches: int) -> list[tuple[Tensor, Tensor]]:
        """As many full batches, whole."""
        images, labels = self.examples(num_batches)
        return list(zip(*(torch.split(each, self.batch_size) for each in (images, labels)), strict=True))


CASES = {
    "MLP 784-128-10, 32": Case(lambda: MLP(hidden_sizes=(128,)), (1, 28, 28), 32),
    "LeNet-5, 32": Case(LeNet5, (1, 28, 28), 32),
    "pfl's CNN, 10": Case(PflNet, (3, 32, 32), 10),
}
CLIENT_CASES = {"MLP 64-32-10, 10": Case(lambda: MLP(image_size=8, hidden_sizes=(32,)), (1, 8, 8), 10)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="blocks of each way")
    parser.add_argument("--output", type=Path, default=results.PAGES / "local-fit.md")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row_of(name, measure(case, STEPS, options.rounds, BLOCK_SECONDS)) for name, case in CASES.items()]
    client_rows = [
        client_row_of(name, *measure_clients(case, CLIENTS, CLIENT_BATCHES, CLIENT_ROUNDS))
        for name, case in CLIENT_CASES.items()
    ]
    text = TEXT.format(
        steps=STEPS,
        rounds=options.rounds,
        batches=CLIENT_BATCHES,
        clients=CLIENTS,
        client_rounds=CLIENT_ROUNDS,
        machine=machine.describe(threads=1),
        table=results.table(COLUMNS, rows),
        client_table=results.table(CLIENT_COLUMNS, client_rows),
    )
    print(text)
    if not options.print_only:
        results.write_section("local_fit", text, options.output)


def row_of(name: str, timings: dict[str, Timing]) -> list[str]:
    """Milliseconds of a fit in each way, of a step in the first two, and by how much they differ."""
    milliseconds = [1e3 * timing.seconds for timing in timings.values()]
    over = 100 * (np.divide(timings["ours"].blocks, timings["bare"].blocks) - 1)
    low, middle, high = np.percentile(over, (25, 50, 75))
    return [
        name,
        *(f"{each:.1f}" for each in milliseconds),
        *(f"{each / STEPS:.3f}" for each in milliseconds[:2]),
        f"{middle:.0f} % ({low:.0f} to {high:.0f})",
    ]


def client_row_of(name: str, clients: list[float], bare: list[float]) -> list[str]:
    """Milliseconds of a client, of its steps in a bare loop, and of the rest."""
    whole, steps = 1e3 * median(clients), 1e3 * median(bare)
    return [name, f"{whole:.2f}", f"{steps:.2f}", f"{whole - steps:.2f}"]


def measure(case: Case, steps: int, rounds: int, block_seconds: float) -> dict[str, Timing]:
    """The time of a fit of `steps` steps: bare, under `ClientTrainer`, under `lightning.Trainer`."""
    batches = case.batches(steps)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loader = DataLoader(TensorDataset(images, labels), case.batch_size, shuffle=True)
    bare, theirs = case.make(), case.make()
    ours = ClientTrainer(case.make(), FitOptions(), torch.device("cpu"))

    def fit_theirs() -> None:
        with lightning_quiet():
            trainer = L.Trainer(
                max_epochs=1,
                accelerator="cpu",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(theirs, loader)

    ways = {"bare": lambda: fit_bare(bare, batches), "ours": lambda: ours.fit(loader), "theirs": fit_theirs}
    works = {name: _repeated(fit) for name, fit in ways.items()}
    return time_in_turns(works, block_seconds, rounds)


def measure_clients(case: Case, clients: int, batches: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of every client of a run, and of as many fits in a bare loop, in turn round by round."""
    watch = _Watch(case, batches)
    images, labels = case.examples(clients * batches)
    with tempfile.TemporaryDirectory() as folder, lightning_quiet():
        trainer = FederatedTrainer(
            max_rounds=rounds,
            clients_per_round=clients,
            callbacks=watch,
            logger=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        data = PartitionedDataModule(_Examples(images, labels, case.batch_size), IidPartitioner(clients))
        trainer.fit(case.make(), data)
    return watch.clients, watch.bare


def fit_bare(module: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """One pass over the batches."""
    optimizer = module.configure_optimizers()
    for images, labels in batches:
        optimizer.zero_grad()
        module.loss(module(images), labels).backward()
        optimizer.step()


class _Watch(RoundCallback):
    """Times a round's clients, and times a bare loop after each round."""

    def __init__(self, case: Case, num_batches: int) -> None:
        self.clients: list[float] = []
        self.bare: list[float] = []
        self._started = 0.0
        self._module, self._batches = case.make(), case.batches(num_batches)

    def on_client_start(self, trainer: Any, client_id: ClientId, mode: Mode) -> None:
        self._started = time.thread_time()

    def on_client_end(self, trainer: Any, record: ClientRecord) -> None:
        self.clients.append(time.thread_time() - self._started)

    def on_round_end(self, trainer: Any, record: RoundRecord) -> None:
        for _ in record.clients:
            started = time.thread_time()
            fit_bare(self._module, self._batches)
            self.bare.append(time.thread_time() - started)


class _Examples(L.LightningDataModule):
    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        super().__init__()
        self.examples, self.batch_size = TensorDataset(images, labels), batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.examples, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.examples, len(self.examples))


def _repeated(fit: Callable[[], object]) -> Callable[[int], float]:
    def work(repeats: int) -> float:
        started = time.thread_time()
        for _ in range(repeats):
            fit()
        return (time.thread_time() - started) / repeats

    return work


if __name__ == "__main__":
    main()
