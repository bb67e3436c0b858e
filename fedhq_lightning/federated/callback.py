"""Hooks around the round loop: subclass `RoundCallback` and override what is needed."""

from typing import TYPE_CHECKING, Any

from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.types import ClientId, Mode, Plan

if TYPE_CHECKING:
    from fedhq_lightning.trainer import FederatedTrainer


class RoundCallback:
    """Base class of what `FederatedTrainer(callbacks=[...])` takes; every hook does nothing by default.

    Hooks only listen: what they return is ignored. To end the run early, set `trainer.should_stop = True`. Hooks run
    on every process, with the same records on each at the end of a round, so that a decision taken from records is the
    same everywhere; write or print only where `trainer.is_global_zero`.
    """

    def on_fit_start(self, trainer: "FederatedTrainer") -> None:
        """The run is set up; no round has begun. A resumed run has loaded its state."""

    def on_round_start(self, trainer: "FederatedTrainer", round_number: int, plan: Plan) -> None:
        """The cohort and its modes are known; no client has trained yet.

        Args:
            trainer: The running trainer.
            round_number: Number of the round, from 1.
            plan: Mode of every client of the cohort.
        """

    def on_client_start(self, trainer: "FederatedTrainer", client_id: ClientId, mode: Mode) -> None:
        """One client of the round is about to train on this process."""

    def on_client_end(self, trainer: "FederatedTrainer", record: ClientRecord) -> None:
        """One client has trained on this process; other processes report their own clients."""

    def on_round_end(self, trainer: "FederatedTrainer", record: RoundRecord) -> None:
        """The round is aggregated and evaluated; the same record on every process. Round 0 is the evaluation before."""

    def on_fit_end(self, trainer: "FederatedTrainer") -> None:
        """The last round is over; model and summary are written."""

    def on_exception(self, trainer: "FederatedTrainer", error: BaseException) -> None:
        """The run ends by `error` (Ctrl-C included), which is raised again afterwards."""

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint; two of one class need different names."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume: plain values only (numbers, strings, booleans, None, lists, dicts)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
