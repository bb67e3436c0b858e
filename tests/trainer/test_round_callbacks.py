"""What round callbacks hear and in which order, and that a stop counts whenever it comes."""

from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.callback import Monitored, RoundCallback, RoundControl
from fedhq_lightning.run.records import RoundRecord

from ..small_federation import SmallData, SmallModule, trainer

pytestmark = pytest.mark.usefixtures("quick")


class Stops(RoundCallback):
    """In one of the two hooks at the end of round 2."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def on_round_end(self, trainer: RoundControl, record: RoundRecord) -> None:
        self._stop("on_round_end", trainer, record)

    def on_round_saved(self, trainer: RoundControl, record: RoundRecord) -> None:
        self._stop("on_round_saved", trainer, record)

    def _stop(self, hook: str, trainer: RoundControl, record: RoundRecord) -> None:
        if (hook, record.round) == (self.hook, 2):
            trainer.should_stop = True


@pytest.mark.parametrize("hook", ["on_round_end", "on_round_saved"])
def test_a_stop_is_remembered_whichever_hook_asked_for_it(hook: str) -> None:
    settings: dict[str, Any] = {"max_rounds": 6, "checkpoint_every_n_rounds": 4}
    stopped = trainer(callbacks=Stops(hook), **settings)
    stopped.fit(SmallModule(), SmallData())
    assert stopped.summary["rounds"] == 2
    resumed = trainer(callbacks=Stops(hook), **settings)
    resumed.fit(SmallModule(), SmallData(), ckpt_path=stopped.run_dir)
    assert resumed.summary["rounds"] == 2


def test_a_round_is_saved_when_it_is_said_to_be() -> None:
    lines: list[tuple[int, int]] = []

    class Reads(RoundCallback):
        def on_round_saved(self, trainer: RoundControl, record: RoundRecord) -> None:
            lines.append((record.round, len((trainer.run_dir / "rounds.jsonl").read_text().splitlines())))

    trainer(callbacks=Reads(), max_rounds=2).fit(SmallModule(), SmallData())
    assert lines == [(0, 1), (1, 2), (2, 3)]


def test_a_fit_that_fails_tells_nothing_of_the_one_before(tmp_path: Path) -> None:
    there = trainer(max_rounds=1)
    there.fit(SmallModule(), SmallData())
    assert there.monitored == Monitored("val_loss", "min")
    with pytest.raises(ConfigurationError):
        there.fit(SmallModule(), object())  # type: ignore[arg-type]  # no data module
    assert there.monitored == Monitored()
    assert there.summary == {}


def test_callbacks_hear_of_a_failure_although_a_logger_cannot_be_closed() -> None:
    from lightning.pytorch.loggers import CSVLogger

    heard: list[str] = []

    class Full(CSVLogger):
        def finalize(self, status: str) -> None:
            raise OSError("disk full")

    class Hears(RoundCallback):
        def on_round_end(self, trainer: RoundControl, record: RoundRecord) -> None:
            raise ZeroDivisionError

        def on_exception(self, trainer: RoundControl, error: BaseException) -> None:
            heard.append(type(error).__name__)

    with (
        pytest.warns(UserWarning, match="Full failed, and the run goes on without .*OSError: disk full"),
        pytest.raises(ZeroDivisionError),
    ):
        trainer(callbacks=Hears(), logger=[Full("logs")]).fit(SmallModule(), SmallData())
    assert heard == ["ZeroDivisionError"]
