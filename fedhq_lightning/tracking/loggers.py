"""Open a run's loggers, log its rounds, close them: whatever a logger does, the run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from fedhq_lightning.run.logged_rows import logged_values
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.run_names import given_name
from fedhq_lightning.support.lightnings import AnyLogger, both
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.support.wandb_session import wandb_session
from fedhq_lightning.tracking import wandb_mode, wandb_run
from fedhq_lightning.tracking.guest import Guest
from fedhq_lightning.tracking.logged_files import log_files, takes_files
from fedhq_lightning.tracking.run_labels import Labels, current_labels
from fedhq_lightning.tracking.tracked_config import tracked_config

_SECONDS_TO_OPEN = 10.0
_SECONDS_TO_CLOSE = {"success": 15.0, "failed": 3.0}
"""For each call, by how the run has ended: whoever interrupts one does not want to wait."""
_SECONDS_TO_UPLOAD = 60.0


@dataclass
class TrackedLogger:
    """A logger of a run that goes on.

    Attributes:
        logger: Lightning's.
        guest: Calls it.
        rounds_held: Rounds that it had before this process opened it; they are not logged again.
        closes_run: Whether the W&B run behind it ends with ours.
        known: Names that W&B was told of.
    """

    logger: AnyLogger
    guest: Guest
    rounds_held: frozenset[int] = field(default_factory=frozenset)
    closes_run: bool = True
    known: set[str] = field(default_factory=set)


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
    labels = labels_of(run_dir)
    settings = {**tracked_config(config, recipe_name, monitor, monitor_mode), **labels.config}
    done, is_own = list(records), logger is True or isinstance(config.get("recipe"), Mapping)
    loggers = _given(logger)
    if logger is True and wandb_mode.mode() != "disabled":
        loggers = [wandb_run.own_logger(run_dir, recipe_name, labels)]
    opened = [TrackedLogger(each, Guest(type(each).__name__)) for each in loggers]

    def open_one(each: TrackedLogger) -> None:
        with wandb_session():
            if isinstance(each.logger, both(WandbLogger)):
                each.closes_run = wandb_run.open_run(each.logger, labels, each.guest.notice) and is_own
                each.rounds_held = wandb_run.rounds_held(each.logger) if done else frozenset()
                wandb_run.define_axes(each.logger, monitor_mode)
            elif done and isinstance(each.logger, both(TensorBoardLogger)):
                # All rounds are logged anew: TensorBoard is to forget what the interrupted run wrote.
                each.logger._kwargs.setdefault("purge_step", 0)
            each.logger.log_hyperparams(settings)
            for record in done:
                _log(each, record)

    # CSVLogger's, in a folder that the user named: all that it deletes is logged anew. Not in the guests' threads:
    # warnings are the whole process's, and one that hangs would put them back in the middle of something else.
    with libraries_quiet(noise=["Experiment logs directory .* exists and is not empty"] if done else []):
        for each in opened:
            each.guest.call(partial(open_one, each))
        for each in opened:
            each.guest.wait(_SECONDS_TO_OPEN)
    return opened


def finish(
    loggers: Sequence[TrackedLogger], summary: Mapping[str, Any], run_dir: Path, status: str = "success"
) -> None:
    """Log what only the end knows to those that take it, and close the loggers, waiting for each as long as it gets on.

    Args:
        loggers: The run's.
        summary: What `summary.json` holds.
        run_dir: The run directory, complete.
        status: "success", or "failed" for a run that ended otherwise; of that one nothing more is logged.
    """
    for each in loggers:
        is_wandb = isinstance(each.logger, both(WandbLogger))
        if is_wandb and status == "success":
            each.guest.call(partial(_in_session, wandb_run.log_end, each.logger, summary, run_dir))
        elif status == "success" and takes_files(each.logger):
            each.guest.call(partial(log_files, each.logger, summary, run_dir))
        each.guest.call(partial(_in_session, each.logger.finalize, status))
        if is_wandb and each.closes_run:
            each.guest.call(partial(_in_session, wandb_run.close, each.logger, status))
    for each in loggers:
        seconds = _SECONDS_TO_CLOSE[status]
        is_wandb = isinstance(each.logger, both(WandbLogger))
        uploads = wandb_run.is_online(cast(WandbLogger, each.logger)) if is_wandb else takes_files(each.logger)
        if status == "success" and uploads:
            seconds = _SECONDS_TO_UPLOAD
        if not each.guest.wait(seconds):
            each.guest.give_up(f"it has not answered for {seconds:g} s")
            if is_wandb:
                wandb_run.abandon()
        elif is_wandb and wandb_run.is_gone():
            wandb_run.abandon()


def _in_session(action: Callable[..., None], *arguments: Any) -> None:
    with wandb_session():
        action(*arguments)


def labels_of(run_dir: Path) -> Labels:
    """The labels of the run that is being started, with the name that WANDB_NAME, or else the user, has given it."""
    labels = current_labels()
    return replace(labels, name=labels.name or os.environ.get("WANDB_NAME") or given_name(run_dir) or None)


def _given(logger: bool | AnyLogger | list[AnyLogger]) -> list[AnyLogger]:
    return logger if isinstance(logger, list) else [logger] if isinstance(logger, AnyLogger) else []


def log_round(loggers: Sequence[TrackedLogger], record: RoundRecord) -> None:
    """Log one round's numbers, on the `round` axis and as the step of loggers that have one."""
    for each in loggers:
        each.guest.call(partial(_log, each, record))


def _log(each: TrackedLogger, record: RoundRecord) -> None:
    if record.round in each.rounds_held:
        return
    values = logged_values(record)
    if isinstance(each.logger, both(WandbLogger)):
        wandb_run.log_values(each.logger, values, each.known)
    else:
        each.logger.log_metrics(values, step=record.round)
        each.logger.save()  # a round is long, and what is kept in memory is lost when the process is killed
