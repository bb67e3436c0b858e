"""What registered clients cost: a thousand, a million, a billion of them, of whom a few train in a round.

    python benchmarks/many_clients.py                   # five minutes on two cores; prints the tables, writes its page
    python benchmarks/many_clients.py --registered 1000 1000000 --print-only

Every run has a process of its own, so that its peak of memory is its own. Clients' data are made when a client is
asked for them. A second table fits a cost model to rounds of other cohorts, models and numbers of processes, and holds
it against a run outside of the fit; docs/scaling.md reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import machine
import results
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning import FederatedTrainer
from fedhq_lightning.allocation import Allocator
from fedhq_lightning.callbacks import HybridAllocator, RoundCallback
from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.models import MLP

TEXT = """## Registered clients

{rounds} rounds of {cohort} clients, each with 20 to 59 images of 8 x 8 in batches of 10, one local epoch of an MLP
with {values:,} values, fleet `mixed`, one process: in fp, and with `HybridAllocator` at `w4a8`. Wall seconds of this
host; memory is the peak of the process (resident, Python and torch included), in one run each.

Printed by `{command}`.

{machine}

{table}
"""
MODEL_TEXT = """## What a round costs

Wall seconds of a round of this host = {formula}, fitted by least squares on the relative error to the runs below
but the last, which the fit has not seen. Each figure is the median of {rounds} rounds of one run, in fp, with
{registered:,} registered clients; *s* is the optimizer steps of a round, *P* the processes, *v* the model's values,
*c* the cohort.

{table}
"""
SIDE, CLASSES, BATCH = 8, 10, 10


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        registered: Clients of the data module.
        cohort: Of them in a round.
        allocator: `none` or `hybrid`.
        hidden: Width of the model's two hidden layers.
        processes: That share a round.
        rounds: After the first one.
    """

    registered: int = 1000
    cohort: int = 50
    allocator: str = "none"
    hidden: int = 64
    processes: int = 1
    rounds: int = 5

    @property
    def values(self) -> int:
        """Of the model."""
        return sum(parameter.numel() for parameter in model(self.hidden).parameters())


class ManyClients(FederatedDataModule):
    """Clients whose images are made of their number, when they are asked for; each has three classes of ten.

    Args:
        count: Clients.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    @property
    def client_ids(self) -> Sequence[int]:
        """Numbers, as a range: nothing is kept for one."""
        return range(self.count)

    def train_dataloader(self, client_id: Any) -> DataLoader[Any]:  # type: ignore[override]  # see there
        """Made anew."""
        return DataLoader(self._made(int(client_id), self.num_examples(client_id)), BATCH, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The server's 200 images."""
        return DataLoader(self._made(-1, 200), 100)

    def num_examples(self, client_id: Any) -> int:
        """20 to 59."""
        return 20 + int(client_id) * 7919 % 40

    def label_counts(self, client_id: Any) -> Tensor:
        """Of its three classes, as far as they can be told without making the images."""
        counts = torch.zeros(CLASSES, dtype=torch.int64)
        examples = self.num_examples(client_id)
        for index, label in enumerate(_classes(int(client_id))):
            counts[label] += examples // 3 + (index < examples % 3)
        return counts

    @staticmethod
    def _made(number: int, count: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(number % 2**62)
        labels = torch.tensor([_classes(number)[index % 3] for index in range(count)])
        if number < 0:
            labels = torch.arange(count) % CLASSES
        angles = labels[:, None] * torch.arange(SIDE * SIDE)[None] * 0.1
        return TensorDataset(
            (angles.sin() + torch.randn(count, SIDE * SIDE, generator=generator)).reshape(-1, 1, SIDE, SIDE), labels
        )


def _classes(number: int) -> tuple[int, int, int]:
    return number % CLASSES, (number // CLASSES + number) % CLASSES, (3 * number + 1) % CLASSES


def model(hidden: int) -> MLP:
    """The same weights for every run."""
    torch.manual_seed(0)
    return MLP(image_size=SIDE, num_classes=CLASSES, hidden_sizes=(hidden, hidden), lr=0.05)


class Stopwatch(RoundCallback):
    """When round 1 began, and what every later round took."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first_after = 0.0
        self.round_seconds: list[float] = []

    def on_round_start(self, trainer: Any, round_number: int, plan: Any) -> None:
        """Cohort and modes are known."""
        if round_number == 1:
            self.first_after = time.perf_counter() - self.started

    def on_round_end(self, trainer: Any, record: Any) -> None:
        """The first round warms up."""
        if record.round > 1:
            self.round_seconds.append(record.wall_seconds)


def measure(case: Case) -> dict[str, float]:
    """Run a case in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        watch = Stopwatch()
        callbacks: list[RoundCallback | Allocator] = [
            watch,
            *([HybridAllocator()] if case.allocator == "hybrid" else []),
        ]
        trainer = FederatedTrainer(
            max_rounds=case.rounds + 1,
            clients_per_round=case.cohort,
            scheme="w4a8" if case.allocator == "hybrid" else None,
            fleet="mixed",
            devices=case.processes,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            accelerator="cpu",
            export=[],
            checkpoint_every_n_rounds=1,
            default_root_dir=folder,
        )
        trainer.fit(model(case.hidden), ManyClients(case.registered))
        checkpoint = max(trainer.run_dir.glob("checkpoints/round-*.ckpt"))
        return {
            "first_after": watch.first_after,
            "round": median(watch.round_seconds),
            "least": min(watch.round_seconds),
            "most": max(watch.round_seconds),
            "peak_mib": _peak_mib(),
            "checkpoint_kib": checkpoint.stat().st_size / 1024,
            "run_kib": sum(each.stat().st_size for each in trainer.run_dir.rglob("*") if each.is_file()) / 1024,
            "uplink_kib": trainer.summary["uplink_bytes"] / (case.rounds + 1) / 1024,
        }


def _peak_mib() -> float:
    """The most that was resident at once."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: this benchmark needs Linux")


def measured(case: Case) -> dict[str, float]:
    """Run a case in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(case, found, file=sys.stderr)
    return found


def main() -> None:
    """Run, print, write the section."""
    options = parse()
    if options.case:
        found = measure(Case(**json.loads(options.case)))
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(json.dumps(found))
        return
    case = Case(cohort=options.cohort, rounds=options.rounds)
    table = registered_table(case, options.registered)
    print(table)
    command = " ".join(["python benchmarks/many_clients.py", *sys.argv[1:]])
    told = {"rounds": case.rounds, "cohort": case.cohort, "values": case.values}
    text = TEXT.format(**told, command=command, machine=machine.describe(threads=1), table=table)
    if not options.print_only:
        results.write_section("many_clients", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registered", type=int, nargs="+", default=[1000, 10**6, 10**9])
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=results.PAGES / "many-clients.md")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results/many-clients.md alone")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def registered_table(case: Case, registered: Sequence[int]) -> str:
    """A row for each number of registered clients, without an allocator and with one."""
    rows = []
    for allocator in ("none", "hybrid"):
        first: dict[str, float] = {}
        for count in registered:
            found = measured(replace(case, registered=count, allocator=allocator))
            first = first or found
            rows.append(
                [
                    *(allocator, f"{count:,}", f"{found['first_after']:.2f}"),
                    f"{found['round']:.3f} [{found['least']:.3f}, {found['most']:.3f}]",
                    f"{found['peak_mib']:.0f} ({found['peak_mib'] / first['peak_mib']:.3f})",
                    f"{found['checkpoint_kib']:.0f}",
                ]
            )
    columns = ("allocator", "registered", "round 1 begins after, s", "a round, s", "peak, MiB", "checkpoint, KiB")
    return results.table(columns, rows)


if __name__ == "__main__":
    main()
