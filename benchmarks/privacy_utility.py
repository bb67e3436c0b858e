"""What privacy costs: accuracy of the deployed model at three epsilons, central and local, in fp and in the lanes.

    python benchmarks/privacy_utility.py central   # 5 minutes of one core; writes a section of docs/results/privacy.md
    python benchmarks/privacy_utility.py local     # 5 minutes of one core; likewise
    python benchmarks/privacy_utility.py local --seeds 1 --rounds 1 --print-only

The noise of each row is what Opacus finds for its epsilon. Settings other than the noise are the same in all rows; they
were chosen on seed 100 at an epsilon of about 8.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from flwr_datasets.partitioner import IidPartitioner
from machine import describe
from opacus.accountants.utils import get_noise_multiplier
from results import PAGES, table, write_section

from fedhq_lightning import FederatedTrainer, PartitionedDataModule
from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import MNIST5k
from fedhq_lightning.federated.privacy import CentralPrivacy, LocalPrivacy
from fedhq_lightning.federated.privacy.mechanisms import Privacy
from fedhq_lightning.models import MLP

EPSILONS = (None, 8.0, 4.0, 2.0)
SCHEMES = (None, "w4a8")
EXAMPLES = 4000
NORM = 1.0
LEARNING_RATE = 0.3
HIDDEN = 16


@dataclass(frozen=True)
class Setting:
    """One kind's federation.

    Attributes:
        clients: Registered.
        cohort: Of a round; on average, where coins are flipped.
        rounds: In all.
        local_epochs: Of a fit.
        batch_size: Of a client's loader.
        delta: Below one over the number of what is hidden.
    """

    clients: int
    cohort: int
    rounds: int
    local_epochs: int
    batch_size: int
    delta: float


SETTINGS = {
    "central": Setting(clients=1000, cohort=200, rounds=15, local_epochs=2, batch_size=4, delta=1e-4),
    "local": Setting(clients=20, cohort=10, rounds=6, local_epochs=1, batch_size=32, delta=1e-3),
}
TEXT = {
    "central": "Each client has 4 images, and is hidden as a whole; {cohort} of {clients:,} take part in a round on "
    "average. {rounds} rounds, {local_epochs} local epochs, `clip_norm` {norm:g}, delta {delta:g}. Without privacy "
    "cohorts have exactly that size.",
    "local": "Each client has 200 images, each of which is hidden; {cohort} of {clients} clients take part in a round. "
    "{rounds} rounds of a local epoch, batches of {batch_size} on average, `max_grad_norm` {norm:g}, delta {delta:g}. "
    "Epsilon is that of a client that is drawn in every round.",
}


def main() -> None:
    """Run all cells of one kind, print the table, write its section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SETTINGS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="in place of the setting's")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results/privacy.md alone")
    options = parser.parse_args()
    setting = SETTINGS[options.kind]
    rounds = options.rounds or setting.rounds
    rows = []
    for epsilon in EPSILONS:
        noise = None if epsilon is None else noise_for(epsilon, setting, rounds, options.kind)
        cells = [
            [run(options.kind, setting, rounds, noise, scheme, seed) for seed in range(options.seeds)]
            for scheme in SCHEMES
        ]
        shown = "none" if epsilon is None else f"{epsilon:g}"
        rows.append([shown, "-" if noise is None else f"{noise:.2f}", *map(spread, cells)])
        print(rows[-1], flush=True)
    columns = ["epsilon", "noise_multiplier", "fp", "w4a8, half PTQ, half QAT"]
    told = TEXT[options.kind].format(**(vars(setting) | {"rounds": rounds}), norm=NORM)
    body = (
        f"## {options.kind.capitalize()}\n\n{told}\n\n{table(columns, rows)}\n\nPrinted by "
        f"`python benchmarks/privacy_utility.py {options.kind}`: accuracy of the last round's model on MNIST-5k's 500 "
        f"validation images (fp: float32; w4a8: the deployed integer model), mean of {options.seeds} seeds with the "
        f"smallest and the largest. MLP 784-{HIDDEN}-10, SGD, learning rate {LEARNING_RATE:g}, IID.\n\n{describe(1)}"
    )
    print(body)
    if not options.print_only:
        write_section(options.kind, body, PAGES / "privacy.md")


def noise_for(epsilon: float, setting: Setting, rounds: int, kind: str) -> float:
    """The noise multiplier with which a run comes to an epsilon, by RDP."""
    rate, steps = setting.cohort / setting.clients, rounds
    if kind == "local":
        size = EXAMPLES // setting.clients
        rate, steps = setting.batch_size / size, rounds * setting.local_epochs * -(-size // setting.batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the noises that it tries
        found: Any = get_noise_multiplier(
            target_epsilon=epsilon, target_delta=setting.delta, sample_rate=rate, steps=steps, accountant="rdp"
        )
    return float(found)


def run(kind: str, setting: Setting, rounds: int, noise: float | None, scheme: str | None, seed: int) -> float:
    """Accuracy of the last round's model; of the deployed one where there is a scheme."""
    privacy: Privacy | None = None
    if noise is not None:
        made = CentralPrivacy if kind == "central" else LocalPrivacy
        privacy = made(noise, NORM, setting.delta)
    torch.manual_seed(seed)
    model = MLP(hidden_sizes=(HIDDEN,), lr=LEARNING_RATE, momentum=0.0)
    data = PartitionedDataModule(MNIST5k(setting.batch_size), IidPartitioner(setting.clients))
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            max_rounds=rounds,
            clients_per_round=setting.cohort,
            local_epochs=setting.local_epochs,
            scheme=scheme,
            callbacks=FixedAllocator("fp" if scheme is None else 0.5),
            privacy=privacy,
            monitor="val_accuracy",
            accelerator="cpu",
            logger=False,
            eval_every_n_rounds=rounds,
            checkpoint_every_n_rounds=rounds,
            final_evaluation=False,
            export=[],
            enable_progress_bar=False,
            seed=seed,
            default_root_dir=folder,
        )
        trainer.writes_model = False
        trainer.fit(model, data)
        last: Any = trainer._records[-1]
    return float(last.monitored)


def spread(values: list[float]) -> str:
    """Mean with smallest and largest, in percent."""
    return f"{100 * mean(values):.1f} [{100 * min(values):.1f}, {100 * max(values):.1f}]"


if __name__ == "__main__":
    main()
