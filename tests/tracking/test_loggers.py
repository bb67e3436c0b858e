"""Loggers of the user's own that fail."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from fedhq_lightning import tracking

from ..logged_run import SETTINGS
from ..small_federation import SmallData, SmallModule, trainer
from ..small_run import small_rounds
from ..trainer.runs import Recorder


class Remembering(DummyLogger):
    """Keeps what it is called with; fails in one of its methods."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.fails = fails
        self.statuses: list[str] = []
        self.steps: list[int] = []

    def log_hyperparams(self, *arguments: Any, **keywords: Any) -> None:
        self._maybe_fail("log_hyperparams")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._maybe_fail("log_metrics")
        self.steps.append(step or 0)

    def finalize(self, status: str) -> None:
        self.statuses.append(status)
        self._maybe_fail("finalize")

    def _maybe_fail(self, method: str) -> None:
        if method == self.fails:
            raise OSError(f"no {method}")


FAILED = "Remembering failed, and the run goes on without what it would have logged (OSError: no {}; said once"


def log_all(loggers: Sequence[Remembering], run_dir: Path) -> None:
    opened = tracking.make_loggers(list(loggers), run_dir, "digits", SETTINGS)
    for record in small_rounds(num_rounds=2):
        tracking.log_round(opened, record)
    tracking.finish(opened, {}, run_dir)


@pytest.mark.parametrize("method", ["log_hyperparams", "log_metrics", "finalize"])
def test_one_that_fails_is_warned_of_once_and_the_others_go_on(method: str, tmp_path: Path) -> None:
    loggers = [Remembering(method), Remembering()]
    with pytest.warns(UserWarning, match=re.escape(FAILED.format(method))) as warned:
        log_all(loggers, tmp_path)
    assert len(warned) == 1
    assert [each.statuses for each in loggers] == [["success"]] * 2
    assert [each.steps for each in loggers] == [[] if method == "log_metrics" else [0, 1, 2], [0, 1, 2]]


def test_the_runs_own_error_is_raised_though_a_logger_fails_after_it() -> None:
    logger, recorder = Remembering("finalize"), Recorder(lambda *_: 1 / 0)
    there = trainer(max_rounds=1, logger=logger, callbacks=[recorder])
    with (
        pytest.warns(UserWarning, match=re.escape(FAILED.format("finalize"))),
        pytest.raises(ZeroDivisionError),
    ):
        there.fit(SmallModule(), SmallData())
    assert logger.statuses == ["failed"]
