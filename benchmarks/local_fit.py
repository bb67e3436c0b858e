"""What one local fit takes in a bare loop, under `ClientTrainer`, and under a `lightning.Trainer` of its own.

    python benchmarks/local_fit.py

Writes `docs/results/local-fit.md`; `--print-only` shows it without writing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import machine
import results
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.models import MLP, LeNet5
from fedhq_lightning.models.classifier import ImageClassifier
from fedhq_lightning.profiling.timing import Timing, time_in_turns
from fedhq_lightning.support.collectives import lightning_quiet
from fedhq_lightning.types import FitOptions

STEPS, BATCH_SIZE, ROUNDS, BLOCK_SECONDS = 20, 32, 15, 0.3
MODELS: dict[str, Callable[[], ImageClassifier]] = {"MLP 784-128-10": MLP, "LeNet-5": LeNet5}
COLUMNS = ("model", "bare loop", "`ClientTrainer`", "`lightning.Trainer`", "a step: bare", "`ClientTrainer`")
TEXT = """
## A local fit of {steps} steps

{rounds} blocks of each, in turn; medians of wall milliseconds, one thread, batches of {batch_size}, fp32. The bare loop
has a list of batches and calls the layers, the loss, its backward and the optimizer; the other two have a `DataLoader`
and the module's hooks and logs. A new `lightning.Trainer` for each fit, as each client of a round would need one, has
neither logger, checkpoints nor display.

{machine}

{table}
"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="blocks of each way")
    parser.add_argument("--output", type=Path, default=results.PAGES / "local-fit.md")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row_of(name, measure(make, STEPS, options.rounds, BLOCK_SECONDS)) for name, make in MODELS.items()]
    text = TEXT.format(
        steps=STEPS,
        rounds=options.rounds,
        batch_size=BATCH_SIZE,
        machine=machine.describe(threads=1),
        table=results.table(COLUMNS, rows),
    )
    print(text)
    if not options.print_only:
        results.write_section("local_fit", text, options.output)


def row_of(name: str, timings: dict[str, Timing]) -> list[str]:
    """Milliseconds of a fit in each way, and of a step in the first two."""
    milliseconds = [1e3 * timing.seconds for timing in timings.values()]
    return [name, *(f"{each:.1f}" for each in milliseconds), *(f"{each / STEPS:.3f}" for each in milliseconds[:2])]


def measure(make: Callable[[], ImageClassifier], steps: int, rounds: int, block_seconds: float) -> dict[str, Timing]:
    """The time of a fit of `steps` steps: bare, under `ClientTrainer`, under `lightning.Trainer`."""
    images, labels = torch.randn(steps * BATCH_SIZE, 1, 28, 28), torch.randint(10, (steps * BATCH_SIZE,))
    loader = DataLoader(TensorDataset(images, labels), BATCH_SIZE, shuffle=True)
    batches = list(zip(torch.split(images, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True))
    bare, ours, theirs = make(), ClientTrainer(make(), FitOptions(), torch.device("cpu")), make()

    def fit_bare() -> None:
        optimizer = torch.optim.SGD(bare.parameters(), lr=0.01)
        for x, y in batches:
            optimizer.zero_grad()
            functional.cross_entropy(bare(x), y).backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()

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

    ways = {"bare": fit_bare, "ours": lambda: ours.fit(loader), "theirs": fit_theirs}
    works = {name: _repeated(fit) for name, fit in ways.items()}
    return time_in_turns(works, block_seconds, rounds)


def _repeated(fit: Callable[[], object]) -> Callable[[int], float]:
    def work(repeats: int) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            fit()
        return (time.perf_counter() - started) / repeats

    return work


if __name__ == "__main__":
    main()
