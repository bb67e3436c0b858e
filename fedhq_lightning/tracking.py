"""Experiment trackers: Weights & Biases through Lightning's logger, offline unless asked otherwise."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.records import RoundRecord

_ROUND = "round"


def check_logger(logger: bool | Logger | list[Logger]) -> None:
    """Refuse what would fail, or make wandb ask on the terminal, after the run directory is made.

    Raises:
        ConfigurationError: W&B is to be online and no API key is known.
    """
    if logger is not True or _mode() != "online":
        return
    from wandb.sdk.lib import wbauth
    from wandb.sdk.wandb_setup import singleton

    with _quietly():
        host = singleton().settings.base_url
        if wbauth.authenticate_session(host=host, source="fedhq", prompt=False) is None:
            raise ConfigurationError(
                f"WANDB_MODE is online, but no API key for {host} is known: run `wandb login`, set WANDB_API_KEY, or "
                "leave WANDB_MODE out to log offline"
            )


def make_loggers(
    logger: bool | Logger | list[Logger], run_dir: Path, recipe_name: str, config: Mapping[str, Any]
) -> list[Logger]:
    """The run's loggers.

    Args:
        logger: True for W&B into the run directory, under the run directory's name as its id so that a resumed run
            goes on under it, and none where WANDB_MODE is "disabled"; False for none; or Lightning loggers of the
            user's own.
        run_dir: The run directory.
        recipe_name: W&B group of the run.
        config: Resolved recipe.
    """
    if isinstance(logger, Logger):
        loggers = [logger]
    elif isinstance(logger, list):
        loggers = logger
    else:
        loggers = [_wandb(run_dir, recipe_name)] if logger and _mode() != "disabled" else []
    with _quietly():
        for each in loggers:
            if isinstance(each, WandbLogger) and each._wandb_init.get("anonymous") is None:
                # Lightning passes None, which wandb takes for an attempt to set it, and prints that it has no effect.
                each._wandb_init.pop("anonymous", None)
            each.log_hyperparams(dict(config))
            if isinstance(each, WandbLogger):
                each.experiment.define_metric(_ROUND)
                each.experiment.define_metric("*", step_metric=_ROUND)
    return loggers


def log_round(loggers: list[Logger], record: RoundRecord) -> None:
    """Log one round's numbers on the `round` axis."""
    values: dict[str, float] = {_ROUND: record.round, **record.metrics}
    values |= {f"clients/{mode}": count for mode, count in record.mode_counts.items()}
    values |= {
        "clients/late": record.late,
        "clients/quarantined": record.quarantined,
        "seconds/wall": record.total_wall_seconds,
        "seconds/virtual": record.total_virtual_seconds,
        "seconds/fit_wall": record.fit_wall_seconds,
        "seconds/allocator": record.allocator_seconds,
        "bytes/uplink": record.uplink_bytes,
        "bytes/downlink": record.downlink_bytes,
    }
    for name in ("metric_fp", "metric_quantized"):
        value = getattr(record, name)
        if value is not None:
            values[name] = value
    for each in loggers:
        each.log_metrics(values, step=record.round)


def finish(loggers: list[Logger], summary: Mapping[str, Any], run_dir: Path, status: str = "success") -> None:
    """Log summary, client table and the files worth keeping, and close the loggers."""
    with _quietly():
        for each in loggers:
            if isinstance(each, WandbLogger) and status == "success":
                _finish_wandb(each.experiment, summary, run_dir)
            each.finalize(status)
            if isinstance(each, WandbLogger):
                each.experiment.finish(exit_code=0 if status == "success" else 1)


def _finish_wandb(run: Any, summary: Mapping[str, Any], run_dir: Path) -> None:
    import pyarrow.parquet
    import wandb

    run.summary.update({name: value for name, value in summary.items() if not isinstance(value, dict | list)})
    clients = pyarrow.parquet.read_table(run_dir / "clients.parquet")
    rows = [list(row.values()) for row in clients.to_pylist()]
    run.log({"clients": wandb.Table(columns=clients.column_names, data=rows), _ROUND: summary["rounds"]})
    model = wandb.Artifact(f"model-{run.id}", type="model")
    model.add_dir(str(run_dir / "model"))
    run.log_artifact(model)
    recipe = wandb.Artifact(f"recipe-{run.id}", type="recipe")
    recipe.add_file(str(run_dir / "recipe.yaml"))
    run.log_artifact(recipe)


def _wandb(run_dir: Path, recipe_name: str) -> WandbLogger:
    import wandb

    settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
    with _quietly():
        return WandbLogger(
            project=os.environ.get("WANDB_PROJECT", "fedhq_lightning"),
            name=run_dir.name,
            id=run_dir.name,
            group=recipe_name,
            save_dir=run_dir,
            offline=_mode() != "online",
            settings=settings,
        )


def _mode() -> str:
    return os.environ.get("WANDB_MODE", "offline")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the notices of wandb and of Lightning about wandb; errors still show."""
    before = logging.getLogger("wandb").level
    logging.getLogger("wandb").setLevel(logging.ERROR)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"wandb\..*|lightning\.pytorch\.loggers\.wandb")
            yield
    finally:
        logging.getLogger("wandb").setLevel(before)
