"""After the last round: deployed model, tables, summary, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedhq_lightning.federated.deployment import deploy
from fedhq_lightning.federated.records import distinct_clients, tier_figures
from fedhq_lightning.federated.rounds import RoundLoop
from fedhq_lightning.federated.summary import summarize, worst_client
from fedhq_lightning.reporting.allocation_figures import write_allocation_picture
from fedhq_lightning.reporting.report import write_report

if TYPE_CHECKING:
    from fedhq_lightning.trainer import FederatedTrainer


def complete(trainer: FederatedTrainer, rounds: RoundLoop, recipe_name: str) -> dict[str, Any]:
    """Write `model/`, `clients.parquet`, `summary.json` and `report.html`; the summary.

    Safe to run again: a run that was killed here is completed by resuming it.
    """
    job, state, directory = rounds.job, rounds.state, rounds.directory
    deployment = deploy(
        rounds.evaluator, state.deployed, job.validation_loaders, job.probe.example_args, directory.model
    )
    # Clients are in `rounds.jsonl` alone, and may be many: each of these reads one round at a time.
    participants, tiers = distinct_clients(directory.stream_rounds()), tier_figures(directory.stream_rounds())
    worst = None
    if job.validation_loaders:
        mode = str(trainer.monitor_mode)
        worst = worst_client(rounds.evaluator, state, trainer.monitor, mode, job.datamodule, participants)
    summary = summarize(
        state,
        trainer.monitor,
        trainer.scheme,
        job.grids,
        trainer.seed,
        deployment,
        worst,
        tiers,
        recipe_name,
        trainer.run_dir,
    )
    directory.write_clients()
    directory.write_summary(summary)
    write_report(directory.path)
    write_allocation_picture(directory.path)
    return summary
