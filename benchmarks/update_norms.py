"""How much longer than the median may an honest update be? What `max_norm_ratio` must leave room for.

    python benchmarks/update_norms.py        # some minutes; prints a table

Federations of honest clients whose data differ in the ways that make updates differ: label mixes, sizes that grow
exponentially (1 example to 2,300), one class a client. Of each round the longest update over the bound's reference, the
median as the server takes it, is looked at; the worst of all rounds is printed. What is far above 1 would be
quarantined at a lower `max_norm_ratio`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from flwr_datasets.partitioner import DirichletPartitioner, ExponentialPartitioner, Partitioner, PathologicalPartitioner
from lightning import LightningModule

from fedhq_lightning import FederatedTrainer, PartitionedDataModule
from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import MNIST5k
from fedhq_lightning.federated import server
from fedhq_lightning.federated.update_checks import Norms, limits_of
from fedhq_lightning.models import LeNet5, MobileNetV2

ROUNDS = 6
SEEDS = (0, 1)


def partitioners(seed: int) -> dict[str, Partitioner]:
    """Ways to deal the examples to clients."""
    return {
        "Dirichlet 0.5": DirichletPartitioner(20, "label", alpha=0.5, min_partition_size=0, seed=seed),
        "Dirichlet 0.1": DirichletPartitioner(20, "label", alpha=0.1, min_partition_size=0, seed=seed),
        "exponential sizes": ExponentialPartitioner(8),
        "one class each": PathologicalPartitioner(10, "label", 1, seed=seed),
    }


def worst_ratio(model: Any, partitioner: Partitioner, seed: int, **settings: Any) -> float:
    """The longest update of all rounds, over the reference of its round."""
    found: list[float] = []

    def look(norms: Sequence[Norms], usual: Norms | None, ratio: float) -> tuple[Norms, Norms]:
        limits, medians = limits_of(norms, usual, ratio)
        for each in norms:
            found.extend(ratio * norm / limit for norm, limit in zip(each, limits, strict=True))
        return limits, medians

    with patch.object(server, "limits_of", look), tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            ROUNDS, logger=False, enable_progress_bar=False, seed=seed, default_root_dir=folder, **settings
        )
        trainer.writes_model = False
        trainer.fit(model, PartitionedDataModule(MNIST5k(), partitioner))
    return max(found)


def main() -> None:
    """Run all, and print the table."""
    warnings.simplefilter("ignore")
    models: dict[str, Callable[[], LightningModule]] = {
        "LeNet-5": LeNet5,
        "MobileNetV2": lambda: MobileNetV2(width=8, lr=0.2),
    }
    settings: dict[str, dict[str, Any]] = {
        "fp": {},
        "ptq and qat": {"scheme": "w4a8"},
        "statistics sent": {"scheme": "w4a8", "retake_batch_statistics": False},
    }
    print(f"longest honest update over the reference, the worst of {ROUNDS} rounds and seeds {SEEDS}\n")
    print("| model | clients | " + " | ".join(settings) + " |\n|---|---|" + "---|" * len(settings))
    for name, make in models.items():
        for dealt in partitioners(0):
            cells = []
            for given in settings.values():
                modes = {"callbacks": FixedAllocator(0.5)} if given else {}
                ratios = []
                for seed in SEEDS:
                    torch.manual_seed(seed)
                    ratios.append(worst_ratio(make(), partitioners(seed)[dealt], seed, **given, **modes))
                cells.append(f"{max(ratios):.1f}")
            print(f"| {name} | {dealt} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
