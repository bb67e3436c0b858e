"""What registered clients cost: a thousand, a million, a billion of them, of whom a few train in a round.

    python benchmarks/many_clients.py               # five minutes on two cores; prints the tables, writes its page
    python benchmarks/many_clients.py --parts registered --registered 1000 1000000 --print-only

Every run has a process of its own, so that its peak of memory is its own. Clients' data are made when a client is
asked for them. A second part fits a cost model to rounds of other cohorts, models and numbers of processes, and holds
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
import numpy as np
import results
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning import FederatedTrainer
from fedhq_lightning.allocation import Allocator
from fedhq_lightning.callbacks import HybridAllocator, RoundCallback
from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.models import MLP
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.support.process_watch import key_of

TEXT = """## Registered clients

{rounds} rounds of {cohort} clients, each with 20 to 59 images of 8 x 8 in batches of 10, one local epoch of an MLP
with {values:,} values, fleet `mixed`, one process: in fp, and with `HybridAllocator` at `w4a8`. Wall seconds of this
host; memory is the peak of the process (resident, Python and torch included), in one run each.

Printed by `{command}`.

{machine}

{table}
"""
MODEL_TEXT = """## What a round costs

Processor seconds of process 0 in a round, one thread, in fp, with {registered:,} registered clients as above: the
median of {rounds} rounds of one run. *c* is the cohort, *P* the number of processes, *v* the model's values. Fitted to
all rows but the last, by least squares on relative errors:

{formula}

The last row is outside of the fit in cohort and model. Peak of memory, fitted likewise to the runs of one process:
{memory}.

Printed by `{command}`.

{table}

What every process does by itself, however many there are: `HybridAllocator` takes {plan:.0f} wall microseconds a
client of the cohort to plan and learn (200 clients of {registered:,}); a client's record is {record:.0f} bytes of
JSON, which all processes get from each other, and takes {read:.0f} processor microseconds to write and read; to read
what each of {many:,} processes tells of itself from the store of the first takes that one {beats:.1f} wall
milliseconds, one look at a time.

## On paper

The same carried to *P* = {many:,}, *c* = {paper_cohort:,} ({share} clients a process) and *v* = {paper_values:,}, of
10^9 registered clients: nothing of this was run.

{paper}
"""
FITTED = (
    *((20, 64, 1), (100, 64, 1), (20, 256, 1), (50, 512, 1), (20, 512, 1), (20, 768, 1), (100, 768, 1)),
    *((600, 64, 1), (20, 64, 2), (100, 64, 2), (600, 64, 2), (100, 256, 2), (50, 768, 2)),
)
HELD_OUT = (200, 1024, 1)
"""Cohort, width of the hidden layers, processes."""
FORMULA = (
    "{:.3g} + {:.3g} v + c/P ({:.3g} + {:.3g} v), and {:.3g} c/P more where two processes share this host's two cores."
)
MANY, PAPER_COHORT, PAPER_VALUES = 1000, 50_000, 10**6
LOOKS_A_SECOND = 2
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

    def train_dataloader(self, client_id: Any) -> DataLoader[Any]:  # type: ignore[override]  # of one client
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
        self.processor_seconds: list[float] = []
        self._spent = 0.0

    def on_round_start(self, trainer: Any, round_number: int, plan: Any) -> None:
        """Cohort and modes are known."""
        if round_number == 1:
            self.first_after = time.perf_counter() - self.started

    def on_round_end(self, trainer: Any, record: Any) -> None:
        """The first round warms up."""
        if record.round > 1:
            self.round_seconds.append(record.wall_seconds)
            self.processor_seconds.append(time.process_time() - self._spent)
        self._spent = time.process_time()


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
        if not trainer.is_global_zero:
            return {}
        checkpoint = max(trainer.run_dir.glob("checkpoints/round-*.ckpt"))
        return {
            "first_after": watch.first_after,
            "round": median(watch.round_seconds),
            "least": min(watch.round_seconds),
            "most": max(watch.round_seconds),
            "peak_mib": _peak_mib(),
            "checkpoint_kib": checkpoint.stat().st_size / 1024,
            "run_kib": sum(each.stat().st_size for each in trainer.run_dir.rglob("*") if each.is_file()) / 1024,
            "processor": median(watch.processor_seconds),
            "plan_us": 1e6 * trainer.summary["allocator_seconds"] / (case.rounds + 1) / case.cohort,
            **_records(trainer.run_dir),
        }


def _records(run_dir: Path) -> dict[str, float]:
    """Of one client's record, in the mean: its bytes as JSON, and microseconds to write and read it."""
    clients = [each for record in RunDirectory(run_dir).read_rounds() for each in record.clients]
    started = time.process_time()
    texts = [json.dumps(each.to_json()) for each in clients]
    for text in texts:
        ClientRecord.from_json(json.loads(text))
    seconds = time.process_time() - started
    return {"record_bytes": sum(map(len, texts)) / len(texts), "record_us": 1e6 * seconds / len(texts)}


def _beat_milliseconds(processes: int) -> float:
    """Of one look at what each process tells of itself."""
    store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    keys = [key_of(rank) for rank in range(processes)]
    for key in keys:
        store.set(key, "12345")
    seconds = []
    for _ in range(50):
        started = time.perf_counter()
        store.multi_get(keys)
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)


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
        if found:
            print(json.dumps(found))
        return
    case = Case(cohort=options.cohort, rounds=options.rounds)
    command = " ".join(["python benchmarks/many_clients.py", *sys.argv[1:]])
    for part in options.parts:
        if part == "registered":
            text = registered_text(case, options.registered, command)
        else:
            text = model_text(replace(case, registered=10**6, rounds=3), command)
        print(text)
        if not options.print_only:
            results.write_section(f"many_clients_{part}", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registered", type=int, nargs="+", default=[1000, 10**6, 10**9])
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=results.PAGES / "many-clients.md")
    parser.add_argument("--parts", nargs="+", choices=("registered", "model"), default=("registered", "model"))
    parser.add_argument("--print-only", action="store_true", help="leave docs/results/many-clients.md alone")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def registered_text(case: Case, registered: Sequence[int], command: str) -> str:
    """The section of registered clients."""
    table, about = registered_table(case, registered), machine.describe(threads=1)
    return TEXT.format(
        rounds=case.rounds, cohort=case.cohort, values=case.values, command=command, machine=about, table=table
    )


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


def model_text(case: Case, command: str) -> str:
    """Run the cases, fit, and say how far the fit is from each."""
    cases = [
        replace(case, cohort=cohort, hidden=hidden, processes=processes)
        for cohort, hidden, processes in (*FITTED, HELD_OUT)
    ]
    found = [measured(each) for each in cases]
    hybrid = measured(replace(case, allocator="hybrid", cohort=200))
    seconds = np.array([each["processor"] for each in found])
    terms = np.array([_terms(each) for each in cases])
    weights = nonnegative_fit(terms[:-1], seconds[:-1])
    alone = [index for index, each in enumerate(cases[:-1]) if each.processes == 1]
    memory = nonnegative_fit(
        np.array([[1.0, cases[index].values] for index in alone]),
        np.array([found[index]["peak_mib"] for index in alone]),
    )
    rows = [
        [
            *(str(each.cohort), f"{each.values:,}", str(each.processes), f"{took:.3f}", f"{told:.3f}"),
            *(f"{told / took - 1:+.0%}", "fitted" if index < len(FITTED) else "outside"),
        ]
        for index, (each, took, told) in enumerate(zip(cases, seconds, terms @ weights, strict=True))
    ]
    columns = ("c", "v", "P", "measured, s", "model, s", "error", "")
    beats = _beat_milliseconds(MANY)
    return MODEL_TEXT.format(
        registered=case.registered,
        rounds=case.rounds,
        formula=FORMULA.format(*weights),
        memory=f"{memory[0]:.0f} MiB + {1e6 * memory[1]:.3g} MiB per million values",
        command=command,
        table=results.table(columns, rows),
        plan=hybrid["plan_us"],
        record=hybrid["record_bytes"],
        read=hybrid["record_us"],
        beats=beats,
        many=MANY,
        paper_cohort=PAPER_COHORT,
        share=PAPER_COHORT // MANY,
        paper_values=PAPER_VALUES,
        paper=paper_table(weights, memory, hybrid, beats),
    )


def _terms(case: Case) -> list[float]:
    share = case.cohort / case.processes
    return [1.0, case.values, share, share * case.values, share * (case.processes > 1)]


def paper_table(
    weights: NDArray[np.float64], memory: NDArray[np.float64], hybrid: dict[str, float], beats: float
) -> str:
    """What each part of a round would take with `MANY` processes, by the fit.

    Args:
        weights: Of the terms of a round's seconds.
        memory: MiB of a process, and MiB for a value of the model.
        hybrid: What was measured of a run with `HybridAllocator`.
        beats: Milliseconds to read what all processes tell of themselves.
    """
    share = PAPER_COHORT / MANY
    fits = share * (weights[2] + weights[4] + weights[3] * PAPER_VALUES)
    gathered = PAPER_COHORT * hybrid["record_bytes"] / 2**20
    reading, planning = (PAPER_COHORT * hybrid[name] / 1e6 for name in ("record_us", "plan_us"))
    rows = [
        [
            "every process asks one store whether each other lives",
            f"{MANY * LOOKS_A_SECOND * beats / 1000:.1f} s of looks a second",
        ],
        ["every process takes the whole cohort's records", f"{reading:.1f} s, {gathered:.0f} MiB"],
        ["every process plans for the whole cohort (`HybridAllocator`)", f"{planning:.1f} s"],
        ["local fits", f"{fits:.2f} s"],
        ["sum, evaluation, checkpoint", f"{weights[0] + weights[1] * PAPER_VALUES:.2f} s"],
        ["memory of a process, without the cohort's records", f"{memory[0] + memory[1] * PAPER_VALUES:.0f} MiB"],
        ["`rounds.jsonl`", f"{gathered:.0f} MiB more every round"],
    ]
    return results.table(("part of a round", "by the fit"), rows)


def nonnegative_fit(terms: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the terms, none below 0, by least squares on relative errors.

    Args:
        terms: (runs, terms).
        values: (runs,), above 0.
    """
    scale = terms.max(axis=0)
    found: NDArray[np.float64] = nnls(terms / scale / values[:, None], np.ones(len(values)))[0] / scale
    return found


if __name__ == "__main__":
    main()
