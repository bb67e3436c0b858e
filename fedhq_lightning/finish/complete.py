"""The end of a run: the deployed model, then the tables, the summary and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.deploy.deployment import Deployment
from fedhq_lightning.deploy.export import first_samples
from fedhq_lightning.deploy.formats import float_forms
from fedhq_lightning.deploy.from_state import deploy
from fedhq_lightning.deploy.model_folder import MOST_SAMPLES, WEIGHTS
from fedhq_lightning.deploy.pixels import Pixels
from fedhq_lightning.deploy.speed import measure_inference
from fedhq_lightning.federated.evaluation_round import EvaluationRound
from fedhq_lightning.federated.fine_tuning_round import Tuned
from fedhq_lightning.federated.parts import evaluation_of, tuned_models_of
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.federated.setup import Job
from fedhq_lightning.finish.fine_tuned import fine_tuned
from fedhq_lightning.finish.on_clients import in_summary, metric_told, on_clients, worst_of
from fedhq_lightning.finish.on_test_data import metrics_on_test_data
from fedhq_lightning.finish.per_class import per_class_accuracy
from fedhq_lightning.finish.worst_client import worst_client
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.quantize.native.lanes import level_on
from fedhq_lightning.report.allocation_figures import write_allocation_picture
from fedhq_lightning.report.report import pictured, write_report
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import distinct_clients, tier_figures
from fedhq_lightning.run.run import Run
from fedhq_lightning.run.state import RunState
from fedhq_lightning.run.summary import summarize
from fedhq_lightning.support.arithmetic import device_name
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.phase_clock import PhaseClock
from fedhq_lightning.support.text import first_line


def complete(
    settings: RunSettings,
    job: Job,
    evaluator: Evaluator,
    state: RunState,
    directory: RunDirectory,
    recipe_name: str,
    clock: PhaseClock,
    writes_model: bool = True,
    failure: str = "",
    tuned: Tuned | None = None,
    has_clients_data: bool = True,
) -> dict[str, Any]:
    """Write `model/`, `clients.parquet`, `summary.json` and `report.html`; the summary.

    Safe to run again: a run that was killed here is completed by resuming it.

    Args:
        settings: What was asked for.
        job: Checked inputs.
        evaluator: Of the run.
        state: After the last round.
        directory: Where it writes.
        recipe_name: For the summary.
        clock: Of the run.
        writes_model: Without, only the summary is written, from what the rounds logged and the test data tell.
        failure: Why there is no model to write and to evaluate, where there is none; the report tells it.
        tuned: Who fine-tuned the model; None where that was not asked for.
        has_clients_data: Whether clients' examples are here to evaluate on; without, no client is told to be the worst.
    """
    # Clients are in `rounds.jsonl` alone, and may be many: whatever is told of them is read one round at a time.
    tiers = tier_figures(directory.stream_rounds())
    monitor, loaders = job.monitored.name, job.validation_loaders if settings.final_evaluation else []
    deployment, worst, per_class, inference, on_test, clients, tuning = None, None, None, None, None, None, None
    has_global_model = not job.own_layers.names
    if writes_model and has_global_model and not failure:
        inputs = job.datamodule.model_inputs()
        with clock.phase("deploy"):
            deployment = deploy(
                evaluator,
                state.deployed,
                loaders,
                job.probe.example_args,
                directory.model,
                logged=next((record.metrics for record in state.records if record.round == state.best_round), None),
                held_out=f"the held-out data (`val_dataloader`) of {_name_of(job.datamodule)}",
                exports=settings.export,
                inputs=inputs,
                pixels=None if settings.export_inputs is None else Pixels.told_by(inputs),
            )
        directory.hand_on_inputs()
    if settings.final_evaluation and not failure:
        with clock.phase("final_evaluation"):
            if has_global_model:
                on_test = metrics_on_test_data(evaluator, state.deployed, job.template, job.datamodule)
            evaluation = evaluation_of(settings, job, evaluator, Processes(None), directory.client_store)
            if evaluation is not None:
                clients, worst, tuning = _on_clients(
                    evaluation, settings, job, evaluator, state, directory, tiers, tuned
                )
            # Under privacy it would be told of a client without noise.
            elif has_clients_data and writes_model and loaders and settings.privacy is None:
                participants = distinct_clients(directory.stream_rounds())
                worst = worst_client(evaluator, state, monitor, job.monitored.mode, job.datamodule, participants)
            if writes_model and loaders:
                per_class = per_class_accuracy(evaluator, state.deployed, loaders, monitor)
            if deployment is not None:
                inference = _inference(evaluator, state, directory, deployment)
    kernels = None
    if settings.scheme is not None:
        with evaluator.autocast():
            kernels = level_on(evaluator.device)
    summary = summarize(
        state,
        monitor,
        settings.scheme,
        job.grids,
        settings.seed,
        deployment,
        on_test,
        worst,
        clients,
        per_class,
        tiers,
        inference,
        recipe_name,
        directory.path,
        clock.read(),
        device_name(evaluator.device),
        kernels,
        failure,
        _privacy(settings, job, state),
        tuning,
    )
    if writes_model:
        directory.write_clients()
    directory.write_summary(summary)
    if writes_model:
        with clock.phase("report"):
            write_allocation_picture(directory.path)
            pictures = pictured(Run(directory.path, summary))
        summary["wall_phases"] = clock.read()  # the whole, for what follows takes next to nothing
        directory.write_summary(summary)
        write_report(Run(directory.path, summary), pictures)
    return summary


def _on_clients(
    evaluation: EvaluationRound,
    settings: RunSettings,
    job: Job,
    evaluator: Evaluator,
    state: RunState,
    directory: RunDirectory,
    tiers: Sequence[Mapping[str, Any]],
    tuned: Tuned | None,
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any] | None]:
    """What the summary holds under `on_clients`, `worst_client` and `fine_tuning`."""
    found = on_clients(evaluation, state, state.last_modes)
    if found is None:
        return None, None, None
    metric = metric_told(found, job.monitored.name)
    direction, tuning = evaluation.directions.get(metric), None
    if tuned is not None:
        alone, store = Processes(None), directory.fine_tuned
        models = tuned_models_of(settings, job, evaluator, alone, store)
        again = evaluation_of(settings, job, evaluator, alone, store, models)
        after = None if again is None else on_clients(again, state, tuned.modes)
        if after is not None:
            tuning = fine_tuned(tuned, found, after, metric, direction, tiers)
    return in_summary(found, metric, direction, tiers), worst_of(found.clients, metric, direction), tuning


def _privacy(settings: RunSettings, job: Job, state: RunState) -> dict[str, Any] | None:
    if settings.privacy is None:
        return None
    is_over = job.ledger.is_over(state.round, state.private_steps)
    return settings.privacy.described(state.epsilon, is_over and state.round < settings.max_rounds)


def _inference(
    evaluator: Evaluator, state: RunState, directory: RunDirectory, deployment: Deployment
) -> dict[str, Any] | None:
    if deployment.model is None:
        return None
    few = first_samples(deployment.model.example_args, MOST_SAMPLES)
    forms: dict[str, nn.Module] = {"fp32 in torch": evaluator.model(state.deployed).cpu()}
    if deployment.model.pixels is not None:
        deployment.model.pixels.put_before(forms["fp32 in torch"], few[0].dim())
    try:
        forms |= float_forms(deployment.model, deployment.programs)
        sizes = {"fp32_bytes": (directory.model / WEIGHTS).stat().st_size, "packed_bytes": deployment.packed_bytes}
        return measure_inference(forms, deployment.programs, few) | sizes
    except Exception as error:  # of the user's code, called outside validation
        rank_zero_warn(f"summary: inference was not measured: {type(error).__name__}: {first_line(error)}")
        return None


def _name_of(datamodule: FederatedDataModule) -> str:
    return type(unwrapped(datamodule)).__name__
