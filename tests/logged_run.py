"""A small run directory with its offline Weights & Biases run, as the trainer leaves them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhq_lightning import tracking
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import RoundRecord

from .small_run import small_summary, write_run

SETTINGS = {"trainer": {"max_rounds": 12, "scheme": "w4a8"}, "device": "cpu"}


def write_logged_run(run_dir: Path, rounds: Sequence[RoundRecord]) -> Path:
    """The folder with what `tracking.finish` needs."""
    write_run(run_dir, list(rounds))
    RunDirectory(run_dir).write_clients()
    (run_dir / "model").mkdir()
    (run_dir / "model" / "README.md").write_text("a model")
    return run_dir


def log_offline(run_dir: Path, rounds: Sequence[RoundRecord], status: str = "success", **monitor: Any) -> None:
    """Log rounds as one process of the trainer does, into `run_dir/wandb`."""
    loggers = tracking.make_loggers(True, run_dir, "digits", SETTINGS, **monitor)
    for record in rounds:
        tracking.log_round(loggers, record)
    tracking.finish(loggers, small_summary(list(rounds)) if status == "success" else {}, run_dir, status)


def wait_for_another_folder() -> None:
    """wandb names folders by the second."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.05)
