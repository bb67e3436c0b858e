"""What a model loses when it is rounded once, without training on the grid: scale search and bias correction.

    python benchmarks/ptq_quality.py       # 2 minutes on one core; prints the table, writes docs/results/ptq-quality.md
    python benchmarks/ptq_quality.py --seeds 1 --epochs 1 --print-only

Models are trained centrally in fp32, then every one is converted to every grid in every way: what is compared is
paired by model and seed.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import machine
import results
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weight_grids import weight_grid

from fedhq_lightning.data.mnist5k import MNIST5k
from fedhq_lightning.models import MLP, LeNet5
from fedhq_lightning.quantize import QuantScheme, convert, correct_bias

MODELS: dict[str, Callable[[], nn.Module]] = {"LeNet-5": LeNet5, "MLP": MLP}
SCHEMES = (
    QuantScheme("w4a8"),
    QuantScheme("w3a8"),
    QuantScheme("w2a8"),
    QuantScheme("w2a8", edge_bits=None),
)
CALIBRATION_EXAMPLES = 32
BATCH_SIZE = 32
LEARNING_RATE = 0.03


class Way(NamedTuple):
    """A way to convert."""

    grid: str
    is_corrected: bool


WAYS = {
    "max scale": Way("max scale", False),
    "no search": Way("no search", False),
    "search": Way("search", False),
    "search + bias": Way("search", True),
}
TEXT = """## Quality of PTQ: scale search and bias correction

Trained centrally in fp32 on MNIST-5k ({epochs} epochs, batch 32, SGD with learning rate 0.03 and momentum 0.9, cosine),
then converted once, without training on the grid. Accuracy and cross entropy of the converted model on 1,000 held-out
images: mean over seeds 0 to {last_seed}, in brackets the smallest and the largest. `edges 8`: first and last layer at 8
bits, the default; `edges too`: every layer on the scheme's grid. `max scale`: torchao's default symmetric scale; `no
search`: the smallest scale at which no weight leaves the range; `search`: a share of that where the squared error is
smaller; `+ bias`: biases corrected on {calibration} training images. Shipped is `search` up to 4 bits, `no search`
above, and bias correction off; the other grids are patched in by the script.

Printed by `{command}`.

{machine}

### Accuracy

{accuracies}

### Cross entropy

{losses}

### Paired differences in accuracy, points

In brackets every seed from 0 on.

{differences}
"""


class Score(NamedTuple):
    """On the held-out images: accuracy in percent, mean cross entropy."""

    accuracy: float
    loss: float


Row = tuple[str, str]
"""Model and scheme, as the tables name them."""


def main() -> None:
    """Train, convert, print, write the section."""
    options = parse()
    torch.set_num_threads(1)
    data = MNIST5k(batch_size=BATCH_SIZE)
    train, held_out = (
        dataset.__getitems__(list(range(len(dataset)))) for dataset in (data.train_dataset, data.read()[1])
    )
    scores: dict[Row, dict[str, list[Score]]] = {}
    for name, make in MODELS.items():
        for seed in range(options.seeds):
            model = fit(make, train.images, train.labels, options.epochs, seed)
            plain = score(model, held_out.images, held_out.labels)
            print(f"{name}, seed {seed}: fp32 {plain}", flush=True)
            calibration = train.images[torch.randperm(len(train.images))[:CALIBRATION_EXAMPLES]]
            for scheme in SCHEMES:
                found = scores.setdefault((name, scheme_name(scheme)), {})
                found.setdefault("fp32", []).append(plain)
                for way_name, way in WAYS.items():
                    converted = convert_in_way(model, scheme, way, calibration)
                    found.setdefault(way_name, []).append(score(converted, held_out.images, held_out.labels))
    accuracies = spread_table({row: by_way(found, 0) for row, found in scores.items()}, digits=1)
    losses = spread_table({row: by_way(found, 1) for row, found in scores.items()}, digits=3)
    differences = difference_table({row: by_way(found, 0) for row, found in scores.items()})
    print(accuracies, losses, differences, sep="\n\n")
    text = TEXT.format(
        command=" ".join(["python benchmarks/ptq_quality.py", *sys.argv[1:]]),
        machine=machine.describe(threads=1),
        epochs=options.epochs,
        last_seed=options.seeds - 1,
        calibration=CALIBRATION_EXAMPLES,
        accuracies=accuracies,
        losses=losses,
        differences=differences,
    )
    if not options.print_only:
        results.write_section("ptq_quality", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=results.PAGES / "ptq-quality.md")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results/ptq-quality.md alone")
    return parser.parse_args()


def fit(make: Callable[[], nn.Module], images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """A model trained in fp32, in evaluation mode.

    Args:
        make: Builds it.
        images: (num_examples, channels, height, width).
        labels: (num_examples,).
        epochs: Passes.
        seed: Of initial weights and batches; torch's global random numbers go on from there.
    """
    torch.manual_seed(seed)
    model = make()
    batches = -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(images)), BATCH_SIZE):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
            schedule.step()
    return model.eval()


def convert_in_way(model: nn.Module, scheme: QuantScheme, way: Way, calibration: Tensor) -> nn.Module:
    """The deployed model; the one given stays as it is."""
    with weight_grid(way.grid):
        if way.is_corrected:
            model = copy.deepcopy(model)
            correct_bias(model, scheme, lambda module: module(calibration))
        converted: nn.Module = convert(model, scheme)
        return converted


def score(model: nn.Module, images: Tensor, labels: Tensor) -> Score:
    """Accuracy and loss of a model in evaluation mode."""
    with torch.no_grad():
        logits = torch.cat([model(part) for part in torch.split(images, 500)])
    accuracy = 100 * (logits.argmax(1) == labels).double().mean()
    return Score(float(accuracy), float(F.cross_entropy(logits, labels)))


def scheme_name(scheme: QuantScheme) -> str:
    """As the tables name it."""
    return f"{scheme}, {'edges too' if scheme.edge_bits is None else f'edges {scheme.edge_bits}'}"


def by_way(found: dict[str, list[Score]], field: int) -> dict[str, list[float]]:
    """One field of the scores, seed by seed."""
    return {name: [each[field] for each in scores] for name, scores in found.items()}


def spread_table(values: dict[Row, dict[str, list[float]]], digits: int) -> str:
    """Mean, smallest and largest over the seeds, ways as columns."""
    columns = list(next(iter(values.values())))
    rows = [[*row, *(spread(found[name], digits) for name in columns)] for row, found in values.items()]
    return results.table(("model", "scheme", *columns), rows)


def difference_table(values: dict[Row, dict[str, list[float]]]) -> str:
    """What search adds to no search, and what bias correction adds to search."""
    rows = [
        [*row, differences(found["search"], found["no search"]), differences(found["search + bias"], found["search"])]
        for row, found in values.items()
    ]
    return results.table(("model", "scheme", "search minus no search", "bias correction, added to search"), rows)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean with smallest and largest."""
    return f"{mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def differences(values: Sequence[float], others: Sequence[float]) -> str:
    """Mean of the paired differences, and every one."""
    found = [value - other for value, other in zip(values, others, strict=True)]
    return f"{mean(found):+.1f} [{', '.join(f'{each:+.1f}' for each in found)}]"


if __name__ == "__main__":
    main()
