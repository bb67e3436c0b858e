"""The parts of a run on this process, put together from its settings and checked inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import lightning as L
from lightning.fabric import Fabric

from fedhq_lightning.federated.client_evaluation import ClientEvaluation, directions_of
from fedhq_lightning.federated.client_fit import ClientFitter
from fedhq_lightning.federated.client_uplink import ClientUplink
from fedhq_lightning.federated.cohort_fit import CohortFit, CohortFitHere
from fedhq_lightning.federated.evaluation_round import EvaluationRound
from fedhq_lightning.federated.fine_tuning_round import FineTuningRound
from fedhq_lightning.federated.lane_fit import LaneFitter
from fedhq_lightning.federated.personal.client_models import ClientModels
from fedhq_lightning.federated.personal.personal_layers import OwnLayers
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy, LocalPrivacy
from fedhq_lightning.federated.privacy.noisy_sum import NoisySum
from fedhq_lightning.federated.robust.robust_accumulator import accumulator_of
from fedhq_lightning.federated.server import Server
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.federated.setup import Job
from fedhq_lightning.federated.statistics_round import StatisticsRound
from fedhq_lightning.federated.update_directions import sketcher_of
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.run.client_store import ClientStore
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import ClientId, StateDict

if TYPE_CHECKING:
    from fedhq_lightning.federated.secure.secure_round import SecureRounds


@dataclass(frozen=True)
class ClientParts:
    """What clients do in a run.

    Attributes:
        fit: Has them train.
        statistics: Has them take batch statistics of global models anew; None where there are none, or they are
            averaged.
        evaluation: Has them evaluate global models; None where they do not.
    """

    fit: CohortFit
    statistics: StatisticsRound | None
    evaluation: EvaluationRound | None


ClientPlace: TypeAlias = Callable[[RunSettings, Fabric, Job, Evaluator, Processes, RunDirectory], ClientParts]
"""Makes the parts of a run for where its clients are."""


def clients_here(
    settings: RunSettings, fabric: Fabric, job: Job, evaluator: Evaluator, processes: Processes, directory: RunDirectory
) -> ClientParts:
    """The parts that let clients live on the run's own processes, and keep in its directory what they keep."""
    store = directory.client_store
    return ClientParts(
        CohortFitHere(fitter_of(settings, fabric, job, store), settings.round_deadline, job.link.fixed_bytes),
        statistics_of(settings, job, evaluator, processes, store),
        evaluation_of(settings, job, evaluator, processes, store),
    )


def fitter_of(settings: RunSettings, fabric: Fabric, job: Job, store: ClientStore | None = None) -> ClientFitter:
    """The part that trains clients on this process; they keep in the store what they keep, if anything."""
    return ClientFitter(
        job.template,
        settings.scheme,
        settings.lanes,
        settings.fit_options,
        job.datamodule,
        settings.aggregator,
        job.link,
        job.clock,
        settings.seed,
        fabric.device,
        fabric.autocast,
        job.allocator.wanted_sensitivity,
        job.probe.batch_norms if settings.retake_batch_statistics else {},
        settings.on_client_error,
        store if keep_state(settings, job) else None,
        ClientUplink(job.link, settings.seed, settings.uplink_rounding, settings.error_feedback),
        job.own_layers,
        settings.privacy if isinstance(settings.privacy, LocalPrivacy) else None,
        settings.ditto,
    )


def keep_state(settings: RunSettings, job: Job) -> bool:
    """Whether clients keep anything from round to round."""
    return settings.aggregator.has_client_state or settings.error_feedback or _have_own(settings, job)


def _have_own(settings: RunSettings, job: Job) -> bool:
    """Whether clients have a model, or layers of it, of their own."""
    return bool(job.own_layers.names) or settings.ditto is not None


def evaluator_of(
    settings: RunSettings,
    fabric: Fabric,
    template: L.LightningModule,
    processes: Processes,
    datamodule: L.LightningDataModule | None = None,
) -> Evaluator:
    """The part that evaluates global states."""
    return Evaluator(
        template,
        settings.scheme,
        settings.fit_options,
        processes,
        fabric.device,
        fabric.autocast,
        settings.seed,
        datamodule,
    )


def statistics_of(
    settings: RunSettings, job: Job, evaluator: Evaluator, processes: Processes, store: ClientStore | None
) -> StatisticsRound | None:
    """The part that takes batch statistics anew, where there are any and they shall be."""
    own = models_of(settings, job, evaluator, processes, store).own if job.own_layers.names else None
    return _statistics_of(settings, job, evaluator, processes, job.shared_batch_norms, own)


def models_of(
    settings: RunSettings, job: Job, evaluator: Evaluator, processes: Processes, store: ClientStore | None
) -> ClientModels:
    """The part that knows each client's model."""
    shared = job.shared_batch_norms if settings.ditto is None else {}
    own = {name: each for name, each in job.probe.batch_norms.items() if name not in shared}
    statistics = _statistics_of(settings, job, evaluator, processes, own)
    return ClientModels(store if _have_own(settings, job) else None, job.clock.position, statistics)


def tuned_models_of(
    settings: RunSettings, job: Job, evaluator: Evaluator, processes: Processes, store: ClientStore
) -> ClientModels:
    """The part that knows the model of each client that has fine-tuned it."""
    statistics = _statistics_of(settings, job, evaluator, processes, job.probe.batch_norms)
    return ClientModels(store, job.clock.position, statistics)


def _statistics_of(
    settings: RunSettings,
    job: Job,
    evaluator: Evaluator,
    processes: Processes,
    layers: Mapping[str, Sequence[str]],
    own: Callable[[ClientId, int], StateDict] | None = None,
) -> StatisticsRound | None:
    if not layers or not settings.retake_batch_statistics:
        return None
    return StatisticsRound(
        layers, evaluator, settings.fit_options, job.datamodule, job.clock, processes, settings.on_client_error, own
    )


def evaluation_of(
    settings: RunSettings,
    job: Job,
    evaluator: Evaluator,
    processes: Processes,
    store: ClientStore | None,
    models: ClientModels | None = None,
) -> EvaluationRound | None:
    """The part that has clients evaluate, the models that they have in the rounds or others.

    None where they are not to, or hold nothing back.
    """
    metrics = job.probe.client_names
    if not metrics:
        return None
    return EvaluationRound(
        _evaluation_options(settings),
        # Of many clients it is seen only here who holds data.
        _panel(settings, job),
        directions_of(metrics, job.monitored.name, job.monitored.mode),
        evaluator,
        models or models_of(settings, job, evaluator, processes, store),
        job.datamodule,
        job.clock,
        processes,
        settings.on_client_error,
    )


def fine_tuning_of(
    settings: RunSettings, fabric: Fabric, job: Job, evaluator: Evaluator, processes: Processes, directory: RunDirectory
) -> FineTuningRound | None:
    """The part that has clients tune the model after the last round; None where they are not to."""
    asked = settings.fine_tuning
    if asked is None:
        return None
    options, fixed_names = asked.options(settings.fit_options), job.link.fixed_names - job.own_layers.names
    lanes = LaneFitter(
        *(job.template, settings.scheme, settings.lanes, options, job.datamodule, settings.seed),
        *(fabric.device, fabric.autocast, job.probe.batch_norms if settings.retake_batch_statistics else {}),
        *(fixed_names, OwnLayers(), None),
    )
    return FineTuningRound(
        asked,
        lanes,
        models_of(settings, job, evaluator, processes, directory.client_store),
        _panel(settings, job),
        job.clock.of_fits(options),
        directory.fine_tuned,
        fixed_names,
        settings.mode_lr,
        processes,
        settings.on_client_error,
    )


def _evaluation_options(settings: RunSettings) -> ClientEvaluation:
    asked = settings.evaluate_clients
    return asked if isinstance(asked, ClientEvaluation) else ClientEvaluation()


def _panel(settings: RunSettings, job: Job) -> list[ClientId]:
    """The clients that evaluate, and tune, in the order of all."""
    drawn = _evaluation_options(settings).panel(job.sampler.with_data(), settings.seed)
    return [each for each in drawn if job.clock.num_examples(each)]


def _private_server_of(settings: RunSettings, privacy: CentralPrivacy, job: Job, processes: Processes) -> Server:
    """Every client counts alike, and what it may change is clipped, not compared with what others change."""
    expected = job.sampler.cohort_size
    noise = privacy.clip_norm, privacy.noise_multiplier, expected, settings.seed
    return Server(
        *(job.link, settings.aggregator, job.parameter_names, processes),
        min_updates=0,
        total_examples=len(job.sampler.with_data()),
        noisy_sum=partial(NoisySum, job.link.sent_shapes, *noise),
    )


def server_of(settings: RunSettings, job: Job, processes: Processes) -> Server:
    """The part that makes the next global model of clients' updates."""
    sketcher = sketcher_of(settings.seed) if job.allocator.wants_update_divergence else None
    if isinstance(settings.privacy, CentralPrivacy):
        return _private_server_of(settings, settings.privacy, job, processes)
    return Server(
        job.link,
        settings.aggregator,
        job.parameter_names,
        processes,
        accumulator=accumulator_of(settings.robust_rule, job.parameter_names),
        sketcher=sketcher,
        max_norm_ratio=settings.max_norm_ratio,
        typical_examples=job.sizes.typical,
        min_updates=job.min_updates,
        total_examples=job.sizes.total,
    )


def secure_of(settings: RunSettings, job: Job, processes: Processes, run: str) -> SecureRounds | None:
    """The part that masks updates, where the server shall learn their sum alone; the run's token goes into its keys."""
    if job.secure is None:
        return None
    from fedhq_lightning.federated.secure.secure_round import SecureRounds

    return SecureRounds(job.secure, job.link, processes, run, settings.seed)
