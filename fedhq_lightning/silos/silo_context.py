"""What the silos tell each other before round 1: sizes, costs, label counts, sensitivities; and what follows."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils._pytree import tree_leaves
from torch.utils.data import Subset, SubsetRandomSampler

from fedhq_lightning.allocation import AllocationContext
from fedhq_lightning.data.federated import sampler_of
from fedhq_lightning.data.labels import find_labels, whole_numbers, why_no_classes
from fedhq_lightning.devices import Fleet, FleetSpec
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.devices.roofline import LayerCost, measure_costs
from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.drop_in.copies import plain_copy
from fedhq_lightning.drop_in.deployed_statistics import moments_of_views
from fedhq_lightning.drop_in.steps_on_copies import in_training, training_step
from fedhq_lightning.drop_in.trainer_parts import training_loaders
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import LaneOptions, LayerScheme, QuantScheme
from fedhq_lightning.risk.divergence import LabelStatistics
from fedhq_lightning.risk.sensitivity import SensitivityMeasure, quantization_sensitivity
from fedhq_lightning.silos.batch_examples import examples_in
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.seeds import generators_kept
from fedhq_lightning.types import FitOptions, MonitorMode, StateDict

_WITHOUT_END = 1000
"""Rounds of a run without `max_epochs`, for what looks ahead."""


class SiloProbe:
    """Measures one silo on the first batch of its own training loader, in copies of the module.

    Args:
        trainer: Its loaders are set up; copies see it through a view that keeps what they log from it.
        pl_module: Plain; it stays as it is.
        scheme: Deployment grid, or None.
        lanes: How the lanes compute.
    """

    def __init__(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, scheme: QuantScheme | None, lanes: LaneOptions | None
    ) -> None:
        with generators_kept():
            batch = next(iter(trainer.fit_loop._combined_loader))[0]  # type: ignore[arg-type]  # set up by now
            batch = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
            self._batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        self._trainer, self._module = trainer, pl_module
        self._scheme, self._lanes = scheme, lanes
        self.batch_size = examples_in(self._batch, training_loaders(trainer))
        self.fingerprint = _fingerprint(self._batch)

    def sensitivity(self, measure: SensitivityMeasure) -> float | None:
        """How much the scheme hurts the module as it is now, see `quantization_sensitivity`."""
        assert self._scheme is not None
        with self._copied() as (copied, step):
            return quantization_sensitivity(copied, self._scheme, step, measure, self._lanes)

    def costs(self, quantized: Mapping[str, bool]) -> list[LayerCost]:
        """Layers of the model on that batch."""
        with self._copied() as (copied, step):
            return measure_costs(step, copied, quantized)

    def moments(self, layers: Sequence[str]) -> StateDict | None:
        """Batch moments of the module as it is now, see `moments_of_views`."""
        return moments_of_views(self._trainer, self._module, self._scheme, layers, [self._batch])

    @contextmanager
    def _copied(self) -> Iterator[tuple[pl.LightningModule, Callable[[], torch.Tensor | None]]]:
        copied = plain_copy(self._module)
        with in_training(self._trainer, self._module, copied):
            yield copied, partial(training_step, self._trainer, copied, self._batch)


@dataclass(frozen=True)
class SiloFacts:
    """What one silo tells of itself; travels as JSON.

    Attributes:
        num_examples: Examples of one epoch.
        batch_size: Of its first batch.
        labels: Examples per label, named; None where its data tell none, or no allocator looks at them. The counts
            alone leave the silo.
        costs: Layers of the model on its first batch, as plain values; empty where a step outside the Trainer failed.
        problem: Why it failed.
        sensitivities: By measure, on the first batch.
        fingerprint: Four bytes of a hash of the first batch; empty where it holds no tensor.
    """

    num_examples: int
    batch_size: int
    labels: dict[str, int] | None
    costs: list[dict[str, Any]]
    problem: str
    sensitivities: dict[str, float | None]
    fingerprint: str = ""


def own_facts(
    trainer: pl.Trainer,
    probe: SiloProbe,
    grids: Mapping[str, LayerScheme],
    measures: Sequence[SensitivityMeasure],
    tells_labels: bool,
) -> SiloFacts:
    """Look at this silo's data and measure on one of its batches; labels are counted only where they are told."""
    loaders = training_loaders(trainer)
    batches, size = int(trainer.num_training_batches), probe.batch_size
    examples = batches * size
    if len(loaders) == 1:
        held = _length(getattr(loaders[0], "sampler", None)) or _length(getattr(loaders[0], "dataset", None))
        examples = min(examples, held) if held else examples
    labels = label_counts(drawn_examples(loaders[0])) if tells_labels and len(loaders) == 1 else None
    quantized = {name.removesuffix(".weight"): grid.activation_bits is not None for name, grid in grids.items()}
    costs, problem, sensitivities = list[LayerCost](), "", dict[str, float | None]()
    try:
        costs = probe.costs(quantized)
        sensitivities = {measure: probe.sensitivity(measure) for measure in measures}
    except Exception as error:  # the user's own step, which knows of one trainer only
        problem = f"{type(error).__name__}: {error}"
    return SiloFacts(
        examples, size, labels, [asdict(each) for each in costs], problem, sensitivities, probe.fingerprint
    )


def drawn_examples(loader: Any) -> Any:
    """The dataset of a loader, or the part of it that a SubsetRandomSampler draws; None without one."""
    dataset: Any = getattr(loader, "dataset", None)
    sampler = sampler_of(loader)
    return Subset(dataset, list(sampler.indices)) if isinstance(sampler, SubsetRandomSampler) else dataset


def label_counts(dataset: Any) -> dict[str, int] | None:
    """Examples per label of a dataset, by the label's text; None where it gives no sign of classes."""
    try:
        labels = find_labels(dataset)
    except (ConfigurationError, TypeError):
        return None
    if labels is None or why_no_classes(labels.values) is not None:
        return None
    return dict(Counter(str(label) for label in whole_numbers(labels.values).tolist()))


def warn_of_same_data(facts: Sequence[SiloFacts]) -> None:
    """Tell of silos whose first batches are alike, as they are where a loader does not look at its rank."""
    seen: dict[str, list[int]] = {}
    for rank, each in enumerate(facts):
        if each.fingerprint:
            seen.setdefault(f"{each.fingerprint} {each.num_examples}", []).append(rank)
    same = [str(rank) for ranks in seen.values() if len(ranks) > 1 for rank in ranks]
    if same:
        rank_zero_warn(
            f"FederatedAveraging: silos {', '.join(same)} begin with the same batch, so they seem to hold the same "
            "data; let train_dataloader choose a silo's own by self.trainer.global_rank"
        )


def clock_of(
    facts: Sequence[SiloFacts],
    fleet: FleetSpec,
    seed: int,
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    every_n_epochs: int,
    payload_bytes: int,
    grids: Mapping[str, LayerScheme],
    lanes: LaneOptions | None,
) -> VirtualClock | None:
    """Virtual seconds of every silo on a fleet, the same on every silo.

    Costs are those of the silo with the largest batch; a silo downloads the payloads of the others.

    Returns:
        None where a step on a copy of the module failed; see `SiloFacts.problem`.

    Raises:
        ConfigurationError: A fleet that does not exist, or of another number of clients.
    """
    devices = Fleet.resolve(fleet, seed)
    devices.check_size(len(facts))
    measured = max(facts, key=lambda each: each.batch_size)
    if measured.problem:
        return None
    costs = [LayerCost(**{**each, "weight_shape": tuple(each["weight_shape"])}) for each in measured.costs]
    accumulated = trainer.accumulate_grad_batches
    return VirtualClock(
        devices,
        range(len(facts)),
        costs,
        measured.batch_size,
        lambda rank: facts[int(rank)].num_examples,
        FitOptions(local_epochs=every_n_epochs, accumulate_grad_batches=accumulated),
        download_bytes=payload_bytes * (len(facts) - 1),
        upload_bytes=payload_bytes,
        precision="bf16" if "bf16" in str(trainer.precision) else "fp32",
        kernels=LaneKernels.of(pl_module, grids, lanes or LaneOptions()),
    )


def context_of(
    facts: Sequence[SiloFacts],
    clock: VirtualClock,
    seed: int,
    trainer: pl.Trainer,
    every_n_epochs: int,
    monitor_mode: MonitorMode,
    resumes: bool,
) -> AllocationContext:
    """What the allocator may know, the same on every silo."""
    ranks = range(len(facts))
    epochs = trainer.max_epochs
    validates_every = trainer.check_val_every_n_epoch or every_n_epochs

    return AllocationContext.on_clock(
        clock,
        ranks,
        seed,
        divergence=_divergence(facts),
        sensitivity=lambda rank, measure: facts[int(rank)].sensitivities.get(measure),
        cohort=lambda round_number: ranks,
        max_rounds=_WITHOUT_END if epochs in (None, -1) else math.ceil(epochs / every_n_epochs),
        eval_every_n_rounds=max(1, validates_every // every_n_epochs),
        monitor_mode=monitor_mode,
        resumes=resumes,
    )


def gather_facts(processes: Processes, mine: SiloFacts) -> list[SiloFacts]:
    """Everybody's facts, by rank."""
    return [SiloFacts(**each) for each in processes.gather(asdict(mine))]


def _divergence(facts: Sequence[SiloFacts]) -> Callable[..., float] | None:
    told = [each.labels for each in facts]
    if any(counts is None for counts in told):
        return None
    names = sorted({name for counts in told if counts is not None for name in counts})
    tensors = [torch.tensor([(counts or {}).get(name, 0) for name in names]) for counts in told]
    return LabelStatistics(range(len(facts)), lambda rank: tensors[int(rank)]).divergence


def _fingerprint(batch: Any) -> str:
    digest = hashlib.blake2b(digest_size=4)
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if tensors else ""


def _length(held: Any) -> int | None:
    try:
        return len(held)
    except TypeError:
        return None
