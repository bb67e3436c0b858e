"""After the last round: deployed model, tables, summary, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.deploy.from_state import deploy
from fedhq_lightning.deploy.model_folder import PROGRAM, WEIGHTS, Deployment
from fedhq_lightning.deploy.speed import measure_inference
from fedhq_lightning.federated.rounds import RoundLoop
from fedhq_lightning.finish.per_class import per_class_accuracy
from fedhq_lightning.report.allocation_figures import write_allocation_picture
from fedhq_lightning.report.report import write_report
from fedhq_lightning.run.records import distinct_clients, tier_figures
from fedhq_lightning.run.summary import summarize, worst_client
from fedhq_lightning.support.text import first_line

if TYPE_CHECKING:
    from fedhq_lightning.trainer import FederatedTrainer


def complete(trainer: FederatedTrainer, rounds: RoundLoop, recipe_name: str) -> dict[str, Any]:
    """Write `model/`, `clients.parquet`, `summary.json` and `report.html`; the summary.

    Safe to run again: a run that was killed here is completed by resuming it. Of a run whose `writes_model` is off only
    the summary is written, from what its rounds logged.
    """
    job, state, directory = rounds.job, rounds.state, rounds.directory
    # Clients are in `rounds.jsonl` alone, and may be many: whatever is told of them is read one round at a time.
    tiers = tier_figures(directory.stream_rounds())
    if not trainer.writes_model:
        summary = _summary(trainer, rounds, tiers, recipe_name)
        directory.write_summary(summary)
        return summary
    deployment = deploy(
        rounds.evaluator,
        state.deployed,
        job.validation_loaders,
        job.probe.example_args,
        directory.model,
        logged=next((record.metrics for record in state.records if record.round == state.best_round), None),
        held_out=f"the held-out data (`val_dataloader`) of {_name_of(job.datamodule)}",
    )
    worst = None
    if job.validation_loaders:
        mode, participants = str(trainer.monitor_mode), distinct_clients(directory.stream_rounds())
        worst = worst_client(rounds.evaluator, state, trainer.monitor, mode, job.datamodule, participants)
    per_class = per_class_accuracy(rounds.evaluator, state.deployed, job.validation_loaders, trainer.monitor)
    inference = _inference(rounds, deployment)
    summary = _summary(trainer, rounds, tiers, recipe_name, deployment, worst, per_class, inference)
    directory.write_clients()
    directory.write_summary(summary)
    write_report(directory.path)
    write_allocation_picture(directory.path)
    return summary


def _summary(
    trainer: FederatedTrainer,
    rounds: RoundLoop,
    tiers: list[dict[str, Any]],
    recipe_name: str,
    deployment: Deployment | None = None,
    worst: dict[str, Any] | None = None,
    per_class: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return summarize(
        rounds.state,
        trainer.monitor,
        trainer.scheme,
        rounds.job.grids,
        trainer.seed,
        deployment,
        worst,
        per_class,
        tiers,
        inference,
        recipe_name,
        trainer.run_dir,
    )


def _inference(rounds: RoundLoop, deployment: Deployment) -> dict[str, Any] | None:
    if deployment.example_args is None:
        return None
    folder = rounds.directory.model
    plain = rounds.evaluator.model(rounds.state.deployed).cpu()
    files = folder / PROGRAM, folder / WEIGHTS
    try:
        return measure_inference(plain, deployment.example_args, *files, deployment.packed_bytes)
    except Exception as error:  # of the user's code, called outside validation
        rank_zero_warn(f"summary: inference was not measured: {type(error).__name__}: {first_line(error)}")
        return None


def _name_of(datamodule: FederatedDataModule) -> str:
    """Its class; of a partitioned one, the class of the data within."""
    return type(getattr(datamodule, "datamodule", datamodule)).__name__
