"""Experiment trackers: Weights & Biases through Lightning's logger, offline unless asked otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.records import RoundRecord
from fedhq_lightning.history.offline_wandb import is_complete
from fedhq_lightning.history.rows import MONITOR, MONITOR_MODE, ROUND, logged_values
from fedhq_lightning.reporting.allocation_data import read_allocation
from fedhq_lightning.wandb_session import api_host, is_logged_in, wandb_quietly

__all__ = ["check_logger", "finish", "log_round", "logged_values", "make_loggers"]

_STUDY_FILES = ("allocation.json", "study.log", "allocation.svg")
_MOST_SECONDS_TO_WRITE = {True: 30.0, False: 3.0}
"""By whether the run succeeded: whoever interrupts one does not want to wait."""


def check_logger(logger: bool | Logger | list[Logger]) -> None:
    """Refuse what would fail, or make wandb ask on the terminal, after the run directory is made.

    Raises:
        ConfigurationError: W&B is to be online and no API key is known.
    """
    if logger is not True or _mode() != "online":
        return
    with wandb_quietly():
        if not is_logged_in():
            raise ConfigurationError(
                f"WANDB_MODE is online, but no API key for {api_host()} is known: run `wandb login`, set "
                "WANDB_API_KEY, or leave WANDB_MODE out to log offline"
            )


def make_loggers(
    logger: bool | Logger | list[Logger],
    run_dir: Path,
    recipe_name: str,
    config: Mapping[str, Any],
    monitor: str | None = None,
    monitor_mode: str | None = None,
) -> list[Logger]:
    """The run's loggers.

    Args:
        logger: True for W&B into the run directory, under the run directory's name as its id so that a resumed run
            goes on under it, and none where WANDB_MODE is "disabled"; False for none; or Lightning loggers of the
            user's own.
        run_dir: The run directory.
        recipe_name: W&B group of the run, unless WANDB_RUN_GROUP names another.
        config: Resolved recipe.
        monitor: Monitored metric, as found; later runs that learn from this one compare it with theirs.
        monitor_mode: Its direction, likewise.
    """
    config = {**config, **({} if monitor is None else {MONITOR: monitor, MONITOR_MODE: monitor_mode})}
    if isinstance(logger, Logger):
        loggers = [logger]
    elif isinstance(logger, list):
        loggers = logger
    else:
        loggers = [_wandb(run_dir, recipe_name)] if logger and _mode() != "disabled" else []
    with wandb_quietly():
        for each in loggers:
            if isinstance(each, WandbLogger) and each._wandb_init.get("anonymous") is None:
                # Lightning passes None, which wandb takes for an attempt to set it, and prints that it has no effect.
                each._wandb_init.pop("anonymous", None)
            each.log_hyperparams(dict(config))
            if isinstance(each, WandbLogger):
                each.experiment.define_metric(ROUND)
                each.experiment.define_metric("*", step_metric=ROUND)
    return loggers


def log_round(loggers: list[Logger], record: RoundRecord) -> None:
    """Log one round's numbers on the `round` axis."""
    values = logged_values(record)
    for each in loggers:
        each.log_metrics(values, step=record.round)


def finish(loggers: list[Logger], summary: Mapping[str, Any], run_dir: Path, status: str = "success") -> None:
    """Log summary, client table and the files worth keeping, and close the loggers."""
    with wandb_quietly():
        for each in loggers:
            if isinstance(each, WandbLogger) and status == "success":
                _finish_wandb(each.experiment, summary, run_dir)
            each.finalize(status)
            if isinstance(each, WandbLogger):
                run = each.experiment
                run.finish(exit_code=0 if status == "success" else 1)
                if run.settings._offline:
                    _wait_until_written(Path(run.settings.sync_file), _MOST_SECONDS_TO_WRITE[status == "success"])


def _wait_until_written(file: Path, seconds: float) -> None:
    """Until wandb's own process has written the end of an offline run, which it may do after `finish` has returned.

    Else whoever reads the file next, such as the allocator of another run, would find a part of it on a busy machine.
    """
    deadline, seen = time.monotonic() + seconds, -1
    while time.monotonic() < deadline:
        size = file.stat().st_size if file.is_file() else 0
        if size != seen and is_complete(file):
            return
        seen = size
        time.sleep(0.02)


def _finish_wandb(run: Any, summary: Mapping[str, Any], run_dir: Path) -> None:
    import pyarrow.parquet
    import wandb

    run.summary.update({name: value for name, value in summary.items() if not isinstance(value, dict | list)})
    clients = pyarrow.parquet.read_table(run_dir / "clients.parquet")
    rows = [list(row.values()) for row in clients.to_pylist()]
    run.log({"clients": wandb.Table(columns=clients.column_names, data=rows), ROUND: summary["rounds"]})
    model = wandb.Artifact(f"model-{run.id}", type="model")
    model.add_dir(str(run_dir / "model"))
    run.log_artifact(model)
    recipe = wandb.Artifact(f"recipe-{run.id}", type="recipe")
    recipe.add_file(str(run_dir / "recipe.yaml"))
    run.log_artifact(recipe)
    _log_allocation(run, summary, run_dir)


def _log_allocation(run: Any, summary: Mapping[str, Any], run_dir: Path) -> None:
    """The allocation map as table and picture, the boundaries, and the study; nothing where no allocator left them."""
    import wandb

    files = [run_dir / name for name in _STUDY_FILES if (run_dir / name).is_file()]
    if not files:
        return
    try:
        allocation = read_allocation(run_dir)
    except ConfigurationError:
        allocation = None  # another allocator's file of that name: kept, as it is
    logged: dict[str, Any] = {}
    if allocation is not None:
        for name, rows in (("clients", allocation.client_rows()), ("boundaries", allocation.boundary_rows())):
            if rows:
                table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
                logged[f"allocation_{name}"] = table
        run.summary["allocation_explanation"] = allocation.explanation
    if (run_dir / "allocation.svg").is_file():
        picture = (run_dir / "allocation.svg").read_text(encoding="utf-8")
        logged["allocation_map"] = wandb.Html(picture, inject=False)
    if logged:
        run.log({**logged, ROUND: summary["rounds"]})
    study = wandb.Artifact(f"study-{run.id}", type="study")
    for file in files:
        study.add_file(str(file))
    run.log_artifact(study)


def _wandb(run_dir: Path, recipe_name: str) -> WandbLogger:
    import wandb

    settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
    with wandb_quietly():
        return WandbLogger(
            project=os.environ.get("WANDB_PROJECT", "fedhq_lightning"),
            name=run_dir.name,
            id=run_dir.name,
            group=os.environ.get("WANDB_RUN_GROUP", recipe_name),
            save_dir=run_dir,
            offline=_mode() != "online",
            settings=settings,
        )


def _mode() -> str:
    return os.environ.get("WANDB_MODE", "offline")
