"""Do QAT's gradients have to be products of values, or do products of integers train as well?

    python benchmarks/qat_backward.py   # a quarter of an hour on one core; writes docs/results/qat-backward.md
    python benchmarks/qat_backward.py --seeds 1 --rounds 1 --print-only --cells new.jsonl

Federated averaging in its simplest form, so that nothing but the lane is looked at: every client trains in QAT in every
round, its forward in integers, and only `lanes.qat_backward` differs. Runs of one seed share initial weights, partition
and batches. A run that is in the file of cells is not repeated. The setting was fixed before the first of these runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import machine
import results
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.data.digits import Digits
from fedhq_lightning.data.images import ImageDataModule
from fedhq_lightning.data.mnist5k import MNIST5k
from fedhq_lightning.experiments.statistics import Difference, paired_difference
from fedhq_lightning.models import MLP, ResNet20
from fedhq_lightning.quantize import LaneOptions, QuantScheme, convert, prepare
from fedhq_lightning.quantize.lane_options import QatBackward

CELLS = Path(__file__).parent / "cells" / "qat-backward.jsonl"


@dataclass(frozen=True)
class Task:
    """What is trained: a model, its data and its learning rate in the first round."""

    model: Callable[[], nn.Module]
    data: Callable[[], ImageDataModule]
    lr: float


TASKS = {
    "MLP, MNIST-5k": Task(MLP, MNIST5k, 0.03),
    "ResNet-20 with BatchNorm, digits": Task(lambda: ResNet20(width=8, norm="batch"), Digits, 0.1),
}
SCHEMES = ("w2a8", "w4a8")
CLIENTS = (1, 10)
ALPHA = 0.3
BATCH_SIZE = 32
BACKWARDS: tuple[QatBackward, ...] = ("int8", "bf16")
TEXT = """## Gradients in integers against gradients of values

The deployed model's accuracy, in percent, and cross entropy on the held-out images (1,000 of MNIST-5k, 355 digits)
after {rounds} rounds of one local epoch: batch {batch}, SGD with momentum 0.9, learning rate 0.03 (MLP) and 0.1
(ResNet-20 of width 8), cosine over the rounds; means over seeds 0 to {last_seed}. One client is central training; ten
have label mixes drawn from a Dirichlet distribution (alpha {alpha:g}) and all take part in every round, and their
float32 models are averaged. First and last layer at 8 bits. `bf16` computes in fp32 on a processor without bf16
instructions. Differences are `int8` minus `bf16`, paired by seed, with the 95 % interval of the t test.

Printed by `python benchmarks/qat_backward.py`.

{machine}

{table}

{verdict}
"""


@dataclass(frozen=True)
class Cell:
    """One run."""

    task: str
    scheme: str
    clients: int
    backward: QatBackward
    seed: int
    rounds: int


@dataclass(frozen=True)
class Score:
    """Of a deployed model on the held-out images: accuracy in percent, mean cross entropy."""

    accuracy: float
    loss: float


def main() -> None:
    """Run what is missing, print, write the page."""
    options = parse()
    torch.set_num_threads(1)
    found = read(options.cells)
    scores = {}
    for cell in cells_of(options.seeds, options.rounds):
        if cell not in found:
            found[cell] = run(cell)
            keep(options.cells, cell, found[cell])
        scores[cell] = found[cell]
    table, accuracies = compare(scores)
    text = TEXT.format(
        rounds=options.rounds,
        batch=BATCH_SIZE,
        last_seed=options.seeds - 1,
        alpha=ALPHA,
        machine=machine.describe(threads=1),
        table=table,
        verdict=verdict(accuracies),
    )
    print(text)
    if not options.print_only:
        results.write_section("qat_backward", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--cells", type=Path, default=CELLS, help="JSON lines of the runs that are done; added to")
    parser.add_argument("--output", type=Path, default=results.PAGES / "qat-backward.md")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results/qat-backward.md alone")
    return parser.parse_args()


def cells_of(seeds: int, rounds: int) -> Iterator[Cell]:
    """Every run, seed after seed, so that what is there of a study that was stopped is paired."""
    for seed, setting in itertools.product(range(seeds), itertools.product(TASKS, SCHEMES, CLIENTS, BACKWARDS)):
        yield Cell(*setting, seed, rounds)


def read(path: Path) -> dict[Cell, Score]:
    """Runs that are done; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {Cell(**entry["cell"]): Score(**entry["score"]) for entry in map(json.loads, lines)}


def keep(path: Path, cell: Cell, score: Score) -> None:
    """Add a run to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"cell": asdict(cell), "score": asdict(score)}, separators=(",", ":")) + "\n")


def run(cell: Cell) -> Score:
    """Train and deploy one."""
    started = time.process_time()
    torch.manual_seed(cell.seed)
    task, scheme = TASKS[cell.task], QuantScheme(cell.scheme)
    data = task.data()
    train, held_out = (part.__getitems__(list(range(len(part)))) for part in data.read())
    # Integers on every host, whatever is faster there.
    options = LaneOptions(qat_kernel="int8", qat_backward=cell.backward)
    model = prepare(task.model(), "qat", scheme, options)
    clients = partition(train.labels, cell.clients)
    for round_number in range(cell.rounds):
        lr = task.lr * (1 + math.cos(math.pi * round_number / cell.rounds)) / 2
        start = {name: value.clone() for name, value in model.state_dict().items()}
        total = {name: torch.zeros_like(value) for name, value in start.items() if value.is_floating_point()}
        for rows in clients:
            model.load_state_dict(start)
            fit(model, train.images[rows], train.labels[rows], lr)
            for name, value in model.state_dict().items():
                if name in total:
                    total[name] += value * (len(rows) / len(train.labels))
        model.load_state_dict(start | total)
    score = score_of(convert(model.eval(), scheme), held_out.images, held_out.labels)
    print(f"{cell}: {score}, {time.process_time() - started:.0f} s", flush=True)
    return score


def partition(labels: Tensor, clients: int) -> list[Tensor]:
    """Rows of every client, each class dealt out by shares from a Dirichlet distribution; none of empty clients."""
    shares = torch.distributions.Dirichlet(torch.full((clients,), ALPHA)) if clients > 1 else None
    parts: list[list[Tensor]] = [[] for _ in range(clients)]
    for label in labels.unique():  # type: ignore[no-untyped-call]  # untyped in torch
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows))]
        ends = (len(rows) * shares.sample().cumsum(0)).round().long()[:-1] if shares else torch.zeros(0).long()
        for part, some in zip(parts, rows.tensor_split(ends), strict=True):
            part.append(some)
    return [rows for rows in map(torch.cat, parts) if len(rows)]


def fit(model: nn.Module, images: Tensor, labels: Tensor, lr: float) -> None:
    """One epoch."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for rows in torch.split(torch.randperm(len(images)), BATCH_SIZE):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]  # as above
        optimizer.step()


def score_of(model: nn.Module, images: Tensor, labels: Tensor) -> Score:
    """Of a model in evaluation mode."""
    with torch.no_grad():
        logits = model(images)
    accuracy = 100 * (logits.argmax(1) == labels).double().mean()
    return Score(float(accuracy), float(F.cross_entropy(logits, labels)))


def compare(scores: Mapping[Cell, Score]) -> tuple[str, list[Difference]]:
    """A table with a row for every setting, and the paired differences in accuracy."""
    groups: dict[tuple[str, str, int], dict[str, list[Score]]] = {}
    for cell, score in scores.items():
        groups.setdefault((cell.task, cell.scheme, cell.clients), {}).setdefault(cell.backward, []).append(score)
    rows, accuracies = [], []
    for (task, scheme, clients), by_backward in groups.items():
        pair = [by_backward[backward] for backward in BACKWARDS]
        accuracy = [[score.accuracy for score in each] for each in pair]
        loss = [[score.loss for score in each] for each in pair]
        accuracies.append(paired_difference(*accuracy))
        rows.append(
            [
                *(task, scheme, str(clients)),
                *(f"{fmean(each):.1f}" for each in accuracy),
                shown(accuracies[-1], 1),
                *(f"{fmean(each):.3f}" for each in loss),
                shown(paired_difference(*loss), 3),
            ]
        )
    columns = [f"{of}, {which}" for of in ("accuracy", "cross entropy") for which in (*BACKWARDS, "difference")]
    return results.table(("model, data", "scheme", "clients", *columns), rows), accuracies


def shown(difference: Difference, digits: int) -> str:
    """Mean and interval."""
    return f"{difference.mean:+.{digits}f} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"


def verdict(differences: Sequence[Difference]) -> str:
    """In how many settings integers are worse beyond noise, and over all of them."""
    worse = sum(each.high < 0 for each in differences)
    mean = fmean(each.mean for each in differences)
    return (
        f"`int8` is worse beyond noise, the whole interval below 0, in accuracy in {worse} of {len(differences)} "
        f"settings; the mean difference of all is {mean:+.2f} points."
    )


if __name__ == "__main__":
    main()
