"""How the loggers of a run hear of its rounds: as a round callback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from fedhq_lightning.federated.callback import RoundCallback, RoundControl
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.lightnings import AnyLogger
from fedhq_lightning.tracking.loggers import TrackedLogger, finish, log_round, make_loggers


class Tracking(RoundCallback):
    """Opens a run's loggers on the first process, logs every round that is saved, and closes them.

    Args:
        logger: As `FederatedTrainer` was given it.
        processes: Hear of a logger that cannot be opened, so that none waits for the first.
        recipe_name: Group of the run.
        described: The run's settings as plain values.
        done: Rounds of a run that is gone on with.
    """

    def __init__(
        self,
        logger: bool | AnyLogger | list[AnyLogger],
        processes: Processes,
        recipe_name: str,
        described: Mapping[str, Any],
        done: Sequence[RoundRecord],
    ) -> None:
        self._logger = logger
        self._processes = processes
        self._recipe_name = recipe_name
        self._described = described
        self._done = done
        self._loggers: list[TrackedLogger] = []

    @override
    def on_fit_start(self, trainer: RoundControl) -> None:
        self._processes.from_first(lambda: self._open(trainer))

    @override
    def on_round_saved(self, trainer: RoundControl, record: RoundRecord) -> None:
        log_round(self._loggers, record)

    @override
    def on_fit_end(self, trainer: RoundControl) -> None:
        finish(self._loggers, trainer.summary, trainer.run_dir)

    @override
    def on_exception(self, trainer: RoundControl, error: BaseException) -> None:
        finish(self._loggers, {}, trainer.run_dir, "failed")

    def _open(self, trainer: RoundControl) -> None:
        watched = trainer.monitored
        self._loggers = make_loggers(
            self._logger,
            trainer.run_dir,
            self._recipe_name,
            self._described,
            watched.name,
            watched.mode,
            self._done,
        )
