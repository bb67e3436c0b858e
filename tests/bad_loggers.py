"""Loggers with which something is wrong."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger

from fedhq_lightning.federated.callback import RoundCallback, RoundControl
from fedhq_lightning.run.records import RoundRecord


class Bad(DummyLogger):
    """Raises or hangs in one of its methods, from the second round on where it is `log_metrics`.

    Args:
        method: Name of it.
        seconds: How long it hangs; with 0 it raises.
    """

    def __init__(self, method: str, seconds: float = 0.0) -> None:
        super().__init__()
        self.method = method
        self.seconds = seconds

    def log_hyperparams(self, *arguments: Any, **keywords: Any) -> None:
        self._reached("log_hyperparams")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step == 1:
            self._reached("log_metrics")

    def save(self) -> None:
        self._reached("save")

    def finalize(self, status: str) -> None:
        self._reached("finalize")

    def _reached(self, method: str) -> None:
        if method == self.method:
            if not self.seconds:
                raise OSError(28, "No space left on device")
            time.sleep(self.seconds)


class Waits(RoundCallback):
    """Says that a round is saved, and goes on once it may: a test does something to the process meanwhile."""

    def on_round_saved(self, trainer: RoundControl, record: RoundRecord) -> None:
        if record.round == 1:
            Path("saved").touch()
            while not Path("go on").exists():
                time.sleep(0.02)
