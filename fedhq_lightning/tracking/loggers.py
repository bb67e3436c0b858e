"""Open a run's loggers, log its rounds, close them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.run.logged_rows import logged_values
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.support.lightnings import AnyLogger, both
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.wandb_session import wandb_session
from fedhq_lightning.tracking import wandb_mode, wandb_run
from fedhq_lightning.tracking.run_labels import current_labels
from fedhq_lightning.tracking.tracked_config import tracked_config


@dataclass(frozen=True)
class TrackedLogger:
    """A logger of a run that goes on.

    Attributes:
        logger: Lightning's.
        rounds_held: Rounds that it had before this process opened it; they are not logged again.
        closes_run: Whether the W&B run behind it ends with ours.
    """

    logger: AnyLogger
    rounds_held: frozenset[int] = field(default_factory=frozenset)
    closes_run: bool = True


def check_logger(logger: bool | AnyLogger | list[AnyLogger]) -> None:
    """Refuse what would fail, or make wandb ask on the terminal, after the run directory is made.

    Raises:
        ConfigurationError: WANDB_MODE is none of W&B's; or W&B is to be online and no API key is known.
    """
    if logger is True:
        wandb_mode.check_own()
    for each in _given(logger):
        if isinstance(each, both(WandbLogger)):
            wandb_mode.check_given(each)


def make_loggers(
    logger: bool | AnyLogger | list[AnyLogger],
    run_dir: Path,
    recipe_name: str,
    config: Mapping[str, Any],
    monitor: str | None = None,
    monitor_mode: str | None = None,
    records: Iterable[RoundRecord] = (),
) -> list[TrackedLogger]:
    """The run's loggers, opened, with its settings and, where it was resumed, the rounds that they lack.

    Args:
        logger: True for W&B into the run directory, under the run directory's name as its id so that a resumed run
            goes on under it, and none where WANDB_MODE is "disabled"; False for none; or Lightning loggers of the
            user's own.
        run_dir: The run directory.
        recipe_name: W&B group of the run, unless WANDB_RUN_GROUP or `labelled` names another.
        config: Settings as the trainer describes them, see `tracked_config`.
        monitor: Monitored metric, as found.
        monitor_mode: Its direction, likewise.
        records: Rounds that are done, clients not needed; empty for a new run.
    """
    labels = current_labels()
    settings = {**tracked_config(config, recipe_name, monitor, monitor_mode), **labels.config}
    done, is_own = list(records), logger is True or isinstance(config.get("recipe"), Mapping)
    loggers = _given(logger)
    if logger is True and wandb_mode.mode() != "disabled":
        loggers = [wandb_run.own_logger(run_dir, recipe_name, labels)]
    # CSVLogger's, in a folder that the user named: all that it deletes is logged anew.
    noise = ["Experiment logs directory .* exists and is not empty"] if done else []
    opened = list[TrackedLogger]()
    with wandb_session(), libraries_quiet(noise=noise):
        try:
            for each in loggers:
                if isinstance(each, both(WandbLogger)):
                    closes = wandb_run.open_run(each, labels) and is_own
                    opened.append(TrackedLogger(each, wandb_run.rounds_held(each) if done else frozenset(), closes))
                    wandb_run.define_axes(each, monitor, monitor_mode)
                else:
                    if done and isinstance(each, both(TensorBoardLogger)):
                        # All rounds are logged anew: TensorBoard is to forget what the interrupted run wrote.
                        each._kwargs.setdefault("purge_step", 0)
                    opened.append(TrackedLogger(each))
                each.log_hyperparams(settings)
            for record in done:
                log_round(opened, record)
        except BaseException:
            finish(opened, {}, run_dir, "failed")
            raise
    return opened


def finish(
    loggers: Sequence[TrackedLogger], summary: Mapping[str, Any], run_dir: Path, status: str = "success"
) -> None:
    """Log to W&B what is known at the end only, and close the loggers, each whatever another one raises.

    Args:
        loggers: The run's.
        summary: What `summary.json` holds.
        run_dir: The run directory, complete.
        status: "success", or "failed" for a run that ended otherwise; of that one nothing more is logged, and a logger
            that cannot be closed is warned of, since the run's own error is the one to be raised.

    Raises:
        Exception: The first that a logger of a successful run raised.
    """
    errors = list[Exception]()
    with wandb_session():
        for each in loggers:
            try:
                _close(each, summary, run_dir, status)
            except Exception as error:  # of a logger, which may be the user's
                errors.append(error)
                if status != "success":
                    name = type(each.logger).__name__
                    rank_zero_warn(f"{name} could not be closed: {type(error).__name__}: {first_line(error)}")
    if errors and status == "success":
        raise errors[0]


def _close(each: TrackedLogger, summary: Mapping[str, Any], run_dir: Path, status: str) -> None:
    if isinstance(each.logger, both(WandbLogger)) and status == "success":
        wandb_run.log_end(each.logger, summary, run_dir)
    each.logger.finalize(status)
    if isinstance(each.logger, both(WandbLogger)) and each.closes_run:
        wandb_run.close(each.logger, status)


def _given(logger: bool | AnyLogger | list[AnyLogger]) -> list[AnyLogger]:
    return logger if isinstance(logger, list) else [logger] if isinstance(logger, AnyLogger) else []


def log_round(loggers: Sequence[TrackedLogger], record: RoundRecord) -> None:
    """Log one round's numbers, on the `round` axis and as the step of loggers that have one."""
    values = logged_values(record)
    for each in loggers:
        if record.round in each.rounds_held:
            continue
        if isinstance(each.logger, both(WandbLogger)):
            wandb_run.log_values(each.logger, values)
        else:
            each.logger.log_metrics(values, step=record.round)
            each.logger.save()  # a round is long, and what is kept in memory is lost when the process is killed
