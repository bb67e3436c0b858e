"""Loggers of the user's own that fail."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from fedhq_lightning import tracking

from ..logged_run import SETTINGS
from ..small_federation import SmallData, SmallModule, trainer
from ..trainer.runs import Recorder


class Remembering(DummyLogger):
    """Keeps what it is called with; fails in one of its methods."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.fails = fails
        self.statuses: list[str] = []

    def log_hyperparams(self, *arguments: Any, **keywords: Any) -> None:
        self._maybe_fail("log_hyperparams")

    def log_metrics(self, *arguments: Any, **keywords: Any) -> None:
        self._maybe_fail("log_metrics")

    def finalize(self, status: str) -> None:
        self.statuses.append(status)
        self._maybe_fail("finalize")

    def _maybe_fail(self, method: str) -> None:
        if method == self.fails:
            raise OSError(f"no {method}")


def test_where_one_cannot_be_opened_the_others_are_closed(tmp_path: Path) -> None:
    first, second = Remembering(), Remembering("log_hyperparams")
    with pytest.raises(OSError, match="no log_hyperparams"):
        tracking.make_loggers([first, second], tmp_path, "digits", SETTINGS)
    assert (first.statuses, second.statuses) == (["failed"], ["failed"])


def test_where_one_cannot_be_closed_the_others_are_and_it_is_told(tmp_path: Path) -> None:
    loggers = [Remembering("finalize"), Remembering()]
    opened = tracking.make_loggers(list(loggers), tmp_path, "digits", SETTINGS)
    with pytest.raises(OSError, match="no finalize"):
        tracking.finish(opened, {}, tmp_path)
    assert [each.statuses for each in loggers] == [["success"]] * 2


def test_the_runs_own_error_is_raised_though_a_logger_fails_after_it() -> None:
    logger, recorder = Remembering("finalize"), Recorder(lambda *_: 1 / 0)
    there = trainer(max_rounds=1, logger=logger, callbacks=[recorder])
    with (
        pytest.warns(UserWarning, match="Remembering could not be closed: OSError: no finalize"),
        pytest.raises(ZeroDivisionError),
    ):
        there.fit(SmallModule(), SmallData())
    assert logger.statuses == ["failed"]
