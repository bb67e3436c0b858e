"""Does the risk that the data analysis gives a client foretell how much PTQ harms it?

    python benchmarks/risk_and_harm.py     # 7 to 14 minutes on one core; prints the tables, writes docs/results/risk.md
    python benchmarks/risk_and_harm.py --seeds 1 --rounds 2 --print-only

A federated model is trained for some rounds. Then every client trains from the same global weights, with the same
random numbers, once in PTQ and once in QAT. The harm of PTQ is what its deployed model does worse than that of QAT,
mean of two such pairs of fits. It is ranked against every number that an allocator could know before.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import machine
import numpy as np
import results
import torch
import torch.nn.functional as F
from flwr_datasets.partitioner import DirichletPartitioner
from rank_correlation import RESAMPLES, Vector, mean_rho, shown, vector
from torch import Tensor, nn

from fedhq_lightning import FederatedTrainer
from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import FederatedDataModule, PartitionedDataModule
from fedhq_lightning.data.mnist5k import MNIST5k
from fedhq_lightning.federated import parts, setup
from fedhq_lightning.federated.client_analysis import ClientAnalyst
from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.federated.update_directions import UpdateDirections, sketcher_of
from fedhq_lightning.models import LeNet5
from fedhq_lightning.quantize import LaneOptions, convert
from fedhq_lightning.risk import Coverage, DivergenceMeasure, LabelStatistics, SensitivityMeasure
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import ClientId, Mode, StateDict

SCHEMES = ("w3a8", "w2a8")
ALPHAS = (0.05, 0.3, 5.0)
CLIENTS = 20
MODES_COMPARED: tuple[Mode, ...] = ("ptq", "qat")
LANES = LaneOptions(layer_kernels={"ptq": {"*": "int8"}}, qat_backward="bf16")
"""PTQ in int8 in layers so small that `auto` may not choose it; QAT as when the page was made."""
REPEATS = 2
CEILING = "the harm of another pair of fits"
HARMS = ("loss, held out", "accuracy, held out", "loss, own", "accuracy, own")
TEXT = """## Risk against observed harm of PTQ, client by client

MNIST-5k, LeNet-5, {clients} clients (Dirichlet over labels), {rounds} rounds of 10 clients in PTQ, 2 local epochs,
batch 32, SGD with learning rate 0.03 and momentum 0.9, `uplink: weights`, first and last layer at 8 bits, PTQ in int8
in all layers. Then every client trains once in PTQ and once in QAT (kernel `auto`), from the same global weights and
with the same random numbers; each result is rounded, sent and deployed. *Harm* is how much larger the deployed model's
cross entropy is after PTQ than after QAT, or how much smaller its accuracy: on 1,000 held-out images, or on the
client's own training images. It is the mean of two such pairs of fits, which differ in the order of the batches. Seeds
0 to {last_seed}; clients without examples are left out.

Divergences, coverage and size are of the client's labels; `updates` is 1 - cosine of its PTQ update with the mean of
all, from sketches of 1,024 numbers; sensitivities are of the global model on the client's calibration batch (at most
32 examples). Each number is Spearman's rho over the clients of one setting and seed, averaged over seeds (and over
settings in the second table); in brackets 95% intervals from {resamples:,} bootstrap samples of the clients of each.
+1: the larger the number, the larger the harm. A rho is left out where the number or the harm is the same for all
clients. The last row shows how well harm repeats itself: rho of the first pair's with the second's.

Printed by `{command}`.

{machine}

### Harm

Mean over clients and seeds, in brackets the smallest and the largest: cross entropy, and points of accuracy.

{harms}

### Rho, mean of all settings

{overall}

### Rho by setting, harm as {first_harm}

{by_cell}
"""


class Score(NamedTuple):
    """Mean cross entropy, and accuracy in percent."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Group:
    """The clients of one setting and seed.

    Attributes:
        scheme: The scheme.
        alpha: Of the Dirichlet partition.
        known: What an allocator could know, (num_clients,) by name; NaN where it is undefined.
        repeats: Harm of each pair of fits, (num_clients,) by the names in `HARMS`.
    """

    scheme: str
    alpha: float
    known: dict[str, Vector]
    repeats: Sequence[dict[str, Vector]]

    @property
    def harm(self) -> dict[str, Vector]:
        """(num_clients,) by the names in `HARMS`, mean over the pairs of fits."""
        return {name: np.mean([each[name] for each in self.repeats], axis=0) for name in HARMS}

    @property
    def cell(self) -> str:
        """The setting, as the tables name it."""
        return f"{self.scheme}, alpha {self.alpha:g}"


def main() -> None:
    """Train, measure, print, write the section."""
    options = parse()
    torch.set_num_threads(1)
    groups = [
        measure(scheme, alpha, seed, options.rounds)
        for scheme, alpha, seed in itertools.product(SCHEMES, ALPHAS, range(options.seeds))
    ]
    harms, overall, by_cell = harm_table(groups), overall_table(groups), cell_table(groups, HARMS[0])
    print(harms, overall, by_cell, sep="\n\n")
    text = TEXT.format(
        command=" ".join(["python benchmarks/risk_and_harm.py", *sys.argv[1:]]),
        machine=machine.describe(threads=1),
        clients=CLIENTS,
        rounds=options.rounds,
        last_seed=options.seeds - 1,
        resamples=RESAMPLES,
        first_harm=HARMS[0],
        harms=harms,
        overall=overall,
        by_cell=by_cell,
    )
    if not options.print_only:
        results.write_section("risk_and_harm", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=results.PAGES / "risk.md")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results/risk.md alone")
    return parser.parse_args()


def measure(scheme: str, alpha: float, seed: int, rounds: int) -> Group:
    """One setting and seed: the federated rounds, both local fits of every client, and what could be known before."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    module = LeNet5(lr=0.03, momentum=0.9)
    partitioner = DirichletPartitioner(
        num_partitions=CLIENTS, partition_by="label", alpha=alpha, min_partition_size=0, seed=seed
    )
    base = MNIST5k(batch_size=32)
    data = PartitionedDataModule(base, partitioner)
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            max_rounds=rounds,
            clients_per_round=10,
            local_epochs=2,
            scheme=scheme,
            lanes=LANES,
            uplink="weights",
            monitor="val_accuracy",
            eval_every_n_rounds=rounds,
            checkpoint_every_n_rounds=rounds,
            callbacks=FixedAllocator("ptq"),
            logger=False,
            enable_progress_bar=False,
            accelerator="cpu",
            seed=seed,
            default_root_dir=folder,
        )
        trainer.fit(module, data)
        checkpoint = RunDirectory(trainer.run_dir).saved_checkpoints()[-1]
        state: StateDict = load_checkpoint(checkpoint)["state"]["global_state"]
    images = base.read()[1]
    held_out = images.__getitems__(list(range(len(images))))
    known, repeats = examine(trainer, module, data, state, rounds + 1, (held_out.images, held_out.labels))
    print(f"{scheme}, alpha {alpha:g}, seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return Group(scheme, alpha, known, repeats)


def examine(
    trainer: FederatedTrainer,
    module: Any,
    data: FederatedDataModule,
    state: StateDict,
    round_number: int,
    held_out: tuple[Tensor, Tensor],
) -> tuple[dict[str, Vector], list[dict[str, Vector]]]:
    """What could be known of every client before, and its harm in each pair of fits; see `Group`.

    Args:
        trainer: With a scheme; not run here.
        module: Of which `state` is a state.
        data: The clients.
        state: The global model.
        round_number: Of the first local fits.
        held_out: Images and labels.
    """
    settings, fabric = trainer.settings, trainer.fabric
    assert settings.scheme is not None
    job = setup.set_up(settings, fabric, module, data)
    fitter = parts.fitter_of(settings, fabric, job)
    received, size = job.link.down(state, round_number)
    clients: Sequence[ClientId] = job.sampler.with_data()
    directions = UpdateDirections(settings.uplink, sketcher_of(settings.seed), job.parameter_names, received)
    mean = ExactMean()
    shape = (REPEATS, len(MODES_COMPARED), len(clients), len(HARMS))
    scores = np.zeros(shape)
    for column, client_id in enumerate(clients):
        own = examples_of(data, client_id)
        for repeat, (row, mode) in itertools.product(range(REPEATS), enumerate(MODES_COMPARED)):
            number = round_number + repeat  # of which the random numbers derive
            update = fitter.fit(number, client_id, mode, received, size, 1.0, None)
            decoded = job.link.receive(update.payload, number, client_id)
            deployed = deploy(job.template, settings.scheme, received | job.link.combine(decoded, received))
            # In the order of HARMS; of accuracy the other way round.
            scores[repeat, row, column] = [*score(deployed, *held_out), *score(deployed, *own)]
            if (mode, repeat) == ("ptq", 0):
                directions.add(client_id, decoded)
                mean.add(decoded, update.record.num_examples)
    analyst = ClientAnalyst(job.template, settings.scheme, settings.lanes, settings.fit_options, data, fabric.device)
    known = known_of(clients, data, directions.divergences(mean.mean(Processes(None))[0]), analyst, received)
    ptq, qat = scores[:, 0], scores[:, 1]
    harms = (ptq - qat) * [1.0, -1.0, 1.0, -1.0]
    return known, [dict(zip(HARMS, each.T, strict=True)) for each in harms]


def known_of(
    clients: Sequence[ClientId],
    data: FederatedDataModule,
    updates: Mapping[ClientId, float | None],
    analyst: ClientAnalyst,
    received: StateDict,
) -> dict[str, Vector]:
    """Every number that an allocator could have, and the products that are risks."""
    labels = LabelStatistics(clients, data.label_counts)
    names = {"total_variation": "total variation", "hellinger": "Hellinger", "jensen_shannon": "Jensen-Shannon"}
    divergences = {
        names[each]: vector([labels.divergence(client, each) for client in clients])
        for each in get_args(DivergenceMeasure)
    }
    divergences["updates"] = vector([updates[client] for client in clients])
    sensitivities = {
        f"sensitivity ({each})": vector([analyst.sensitivity(client, each, received) for client in clients])
        for each in get_args(SensitivityMeasure)
    }
    rest = {
        f"coverage ({each})": vector([labels.coverage(client, each) for client in clients])
        for each in get_args(Coverage)
    }
    rest["size"] = vector([labels.size(client) for client in clients])
    products = {
        f"{name} x {other}": divergence * sensitivity
        for (name, divergence), (other, sensitivity) in itertools.product(divergences.items(), sensitivities.items())
    }
    return divergences | sensitivities | rest | products


def examples_of(data: FederatedDataModule, client_id: ClientId) -> tuple[Tensor, Tensor]:
    """All of a client's training images and labels."""
    batches = list(data.train_dataloader(client_id))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def score(model: nn.Module, images: Tensor, labels: Tensor) -> Score:
    """Loss and accuracy of a model in evaluation mode."""
    with torch.no_grad():
        logits = torch.cat([model(part) for part in torch.split(images, 500)])
    accuracy = 100 * (logits.argmax(1) == labels).double().mean()
    return Score(float(F.cross_entropy(logits.double(), labels)), float(accuracy))


def overall_table(groups: Sequence[Group], resamples: int = RESAMPLES) -> str:
    """Rho of every known number with every harm, over all groups."""
    rows = []
    for name in groups[0].known:
        pairs = {harm: [(group.known[name], group.harm[harm]) for group in groups] for harm in HARMS}
        rows.append([name, *(shown(mean_rho(pairs[harm], resamples)) for harm in HARMS)])
    pairs = {harm: [repeated(group, harm) for group in groups] for harm in HARMS}
    rows.append([CEILING, *(shown(mean_rho(pairs[harm], resamples)) for harm in HARMS)])
    return results.table(("known before", *HARMS), rows)


def cell_table(groups: Sequence[Group], harm: str, resamples: int = RESAMPLES) -> str:
    """Rho of every known number with one harm, setting by setting."""
    cells = list(dict.fromkeys(group.cell for group in groups))
    rows = []
    for name in groups[0].known:
        found = [
            mean_rho([(group.known[name], group.harm[harm]) for group in groups if group.cell == cell], resamples)
            for cell in cells
        ]
        rows.append([name, *map(shown, found)])
    found = [mean_rho([repeated(group, harm) for group in groups if group.cell == cell], resamples) for cell in cells]
    rows.append([CEILING, *map(shown, found)])
    return results.table(("known before", *cells), rows)


def repeated(group: Group, harm: str) -> tuple[Vector, Vector]:
    """A harm in the first pair of fits, and in the second."""
    return group.repeats[0][harm], group.repeats[1][harm]


def harm_table(groups: Sequence[Group]) -> str:
    """How large the harms are."""
    rows = []
    for cell in dict.fromkeys(group.cell for group in groups):
        held = {harm: np.concatenate([group.harm[harm] for group in groups if group.cell == cell]) for harm in HARMS}
        digits = {harm: 3 if harm.startswith("loss") else 1 for harm in HARMS}
        rows.append(
            [cell, str(len(held[HARMS[0]]))]
            + [
                f"{each.mean():+.{digits[harm]}f} [{each.min():+.{digits[harm]}f}, {each.max():+.{digits[harm]}f}]"
                for harm, each in held.items()
            ]
        )
    return results.table(("setting", "clients", *HARMS), rows)


def deploy(template: Any, scheme: Any, state: StateDict) -> nn.Module:
    """The deployed model of a state."""
    module: nn.Module = copy.deepcopy(template)
    module.load_state_dict(state)
    converted: nn.Module = convert(module, scheme)
    return converted


if __name__ == "__main__":
    main()
