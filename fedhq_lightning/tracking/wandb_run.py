"""A run at Weights & Biases, through Lightning's logger: opened, with its axes; what it holds; closed."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

from lightning.pytorch.loggers import WandbLogger

from fedhq_lightning.run.logged_rows import CLOCK, METRICS, MONITOR_MODE, OVER_VIRTUAL_TIME, ROUND, first_charts
from fedhq_lightning.run.offline_wandb import is_complete, mend
from fedhq_lightning.support.text import first_line
from fedhq_lightning.tracking import wandb_media, wandb_mode
from fedhq_lightning.tracking.run_labels import Labels
from fedhq_lightning.tracking.wandb_artifacts import log_artifacts

_SECONDS_BETWEEN_WRITES = 1.0
"""To the offline file. A killed process leaves what it has written; wandb's own pace is 15."""
_MOST_SECONDS_TO_OPEN = 8.0
"""Online; then the run is offline. wandb itself would wait for a minute and a half."""
_MOST_SECONDS_TO_WRITE = {True: 30.0, False: 3.0}
"""By whether the run succeeded: whoever interrupts one does not want to wait."""
_WITH_AXES = frozenset({ROUND, *METRICS, *(name + OVER_VIRTUAL_TIME for name in METRICS)})
"""Names that `define_axes` says all of."""


def own_logger(run_dir: Path, recipe_name: str, labels: Labels) -> WandbLogger:
    """The logger behind `logger: true`."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_transaction_log_flush_interval=_SECONDS_BETWEEN_WRITES,
        init_timeout=_MOST_SECONDS_TO_OPEN,
    )
    return WandbLogger(
        project=os.environ.get("WANDB_PROJECT", "fedhq_lightning"),
        name=labels.name or run_dir.name,
        id=run_dir.name,
        group=os.environ.get("WANDB_RUN_GROUP") or labels.group or recipe_name,
        save_dir=run_dir.absolute(),  # wandb's own process stays where the first run of this one began
        mode="offline" if wandb_mode.mode() != "online" else None,
        settings=settings,
    )


def open_run(logger: WandbLogger, labels: Labels, warn: Callable[[str], None]) -> bool:
    """Open a logger's run, with the labels that it has none of.

    What an earlier fit of this process left open, for another logger, stays open and stays another run; from now on
    this one is `wandb.run`. A run that is none of a fit's, such as that of the user's `wandb.init`, is joined.

    Where W&B cannot be reached, or refuses, it is opened offline.

    Args:
        logger: Lightning's.
        labels: Of the run.
        warn: Told that it is offline, and how to upload it later.

    Returns:
        Whether it was opened: not where it was open, nor where another was joined, of which Lightning warns.
    """
    import wandb

    if logger._experiment is not None:
        return False
    active: Any = wandb.run
    left = active if active in _opened and active.id != logger._wandb_init.get("id") else None
    joins = active is not None and left is None
    if not joins:
        _complete(logger, labels)
    reason = None if joins or not is_online(logger) else wandb_mode.why_unreachable()
    with _as_the_first_run(logger, left):
        try:
            run = _opened_in(logger, "offline" if reason else None)
        except Exception as error:
            if joins or left is not None or not is_online(logger):
                raise
            abandon()  # it holds the run's id
            reason = f"{type(error).__name__}: {first_line(error)}"
            run = _opened_in(logger, "offline")
    if reason:
        warn(
            f"W&B cannot be used now, so this run is logged offline ({reason}); upload it later with: wandb sync "
            f"{shlex.quote(os.path.relpath(run.settings.sync_dir))}"
        )
    if not joins:
        _opened.add(run)
    return not joins


_opened: WeakSet[Any] = WeakSet()
"""Runs that a fit of this process has opened."""


def _complete(logger: WandbLogger, labels: Labels) -> None:
    """Add to what its run is opened with."""
    import wandb

    arguments = logger._wandb_init
    if "settings" not in arguments and "WANDB_INIT_TIMEOUT" not in os.environ:
        arguments["settings"] = wandb.Settings(init_timeout=_MOST_SECONDS_TO_OPEN)
    # wandb reads its environment once a process, at its first run.
    known = {
        "group": os.environ.get("WANDB_RUN_GROUP") or labels.group,
        "job_type": os.environ.get("WANDB_JOB_TYPE") or labels.job_type,
        "name": labels.name,
    }
    arguments.update({key: value for key, value in known.items() if value and arguments.get(key) is None})
    if arguments.get("anonymous") is None:
        # Lightning passes None, which wandb takes for an attempt to set it, and prints that it has no effect.
        arguments.pop("anonymous", None)


@contextmanager
def _as_the_first_run(logger: WandbLogger, left: Any) -> Iterator[None]:
    """Within, a logger opens a run of its own, whatever was left open; afterwards that run is wandb's global one."""
    import wandb
    from wandb.sdk.wandb_init import _set_global_run

    if left is None:
        yield
        return
    logger._wandb_init["reinit"] = "create_new"
    wandb.run = None
    try:
        yield
    finally:
        now: Any = logger._experiment or left
        _set_global_run(now)


def _opened_in(logger: WandbLogger, mode: str | None) -> Any:
    """Its run, without having later runs of the process offline where this one is."""
    offline, logger._offline = logger._offline, False
    if mode is not None:
        logger._wandb_init["mode"] = mode
    elif offline:
        logger._wandb_init.setdefault("mode", "offline")
    try:
        return logger.experiment
    finally:
        logger._offline = offline


def is_online(logger: WandbLogger) -> bool:
    """Whether what it logs goes to a server: as its run says, or, before it has one, as it is to be opened."""
    if logger._experiment is not None:
        return not logger.experiment.settings._offline
    return not logger._offline and wandb_mode.mode(logger._wandb_init.get("mode") or "online") == "online"


def abandon() -> None:
    """End W&B's own process, which does not answer or holds what failed; the next run has a new one.

    The end of this process would wait for it.
    """
    import wandb
    from wandb.errors import term
    from wandb.sdk.lib.service import service_token
    from wandb.sdk.wandb_setup import singleton

    term.termsetup(wandb.Settings(silent=True), None)  # what it says of its end is said by us
    wandb_process: Any = singleton()
    connection, wandb_process._connection = wandb_process._connection, None
    if connection is not None and connection.owns_service:
        connection._proc._process.kill()
        connection._proc.join()
        connection._cleanup()
        service_token.clear_service_in_env()


def is_gone() -> bool:
    """Whether W&B's own process has ended, though this one has not ended it."""
    from wandb.sdk.wandb_setup import singleton

    connection: Any = singleton()._connection
    return connection is not None and connection.owns_service and connection._proc._process.poll() is not None


def define_axes(logger: WandbLogger, monitor_mode: str | None) -> None:
    """Everything over rounds, the monitored metric over virtual seconds too; its best value into the run's summary."""
    define = logger.experiment.define_metric
    every, clock = _name(logger, ROUND), _name(logger, CLOCK)
    define(every, hidden=True)
    define("*", step_metric=every)
    best = monitor_mode if monitor_mode in ("min", "max") else None
    for name in METRICS:
        define(_name(logger, name), step_metric=every, summary=best)
        define(_name(logger, name + OVER_VIRTUAL_TIME), step_metric=clock, summary="none")


def rounds_held(logger: WandbLogger) -> frozenset[int]:
    """Rounds that an earlier process logged to the same run.

    Online, W&B tells the last of them when it goes on with the run. Offline, each process leaves a folder of its own,
    and `wandb sync` puts them together: what a killed one left is made fit for that.
    """
    run = logger.experiment
    held: set[int] = set()
    last = run.summary.get(_name(logger, ROUND))
    if isinstance(last, int | float):
        held.update(range(int(last) + 1))
    if run.settings._offline:
        own = Path(run.settings.sync_file)
        for file in own.parent.parent.glob(f"*run-*-{run.id}/run-{run.id}.wandb"):
            if file != own:
                rounds = mend(file)
                held |= rounds or set()
                if rounds is None:
                    shutil.rmtree(file.parent, ignore_errors=True)
    return frozenset(held)


def log_values(logger: WandbLogger, values: Mapping[str, float], known: set[str]) -> None:
    """Log a round's numbers, and those of the first charts.

    Args:
        logger: Open, with its axes.
        values: What `logged_values` gives.
        known: Names whose last value is kept out of W&B's summary, which is for the whole run; new ones are added.
    """
    values = {**values, **first_charts(values)}
    every = _name(logger, ROUND)
    for name in values.keys() - known - _WITH_AXES:
        logger.experiment.define_metric(_name(logger, name), step_metric=every, summary="none")
    known |= values.keys()
    logger.log_metrics(values)  # without a step, with which Lightning would log a third axis


def log_end(logger: WandbLogger, summary: Mapping[str, Any], run_dir: Path) -> None:
    """Log summary, tables, pictures and artifacts of a finished run."""
    run = logger.experiment
    with _staged_beside(run):
        media, notes = wandb_media.tables_and_pictures(summary, run_dir)
        best = wandb_media.best_values(run_dir, str(run.config.get(MONITOR_MODE)))
        best = {_name(logger, name): value for name, value in best.items()}
        run.summary.update({**wandb_media.summary_values(summary), **notes, **best})
        run.log({_name(logger, name): value for name, value in {**media, ROUND: summary["rounds"]}.items()})
        log_artifacts(run, summary, run_dir)


def close(logger: WandbLogger, status: str) -> None:
    """End the run."""
    run = logger.experiment
    run.finish(exit_code=0 if status == "success" else 1)
    if run.settings._offline:
        _wait_until_written(Path(run.settings.sync_file), _MOST_SECONDS_TO_WRITE[status == "success"])


@contextmanager
def _staged_beside(run: Any) -> Iterator[None]:
    """Keep the copies that wandb makes for artifacts in the run's folder, to be there when an offline run is synced.

    They would be in a folder of the user's home, of which a copied run directory knows nothing.
    """
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ.setdefault("WANDB_DATA_DIR", str(run.settings.sync_dir))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("WANDB_DATA_DIR", None)


def _name(logger: WandbLogger, name: str) -> str:
    return f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}{name}" if logger._prefix else name


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
