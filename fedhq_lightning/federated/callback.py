"""Hooks around the round loop: subclass `RoundCallback` and override what is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.support.phase_clock import PhaseClock
from fedhq_lightning.types import ClientId, Mode, MonitorMode, Plan

if TYPE_CHECKING:
    from fedhq_lightning.federated.settings import RunSettings  # which loads torch


@dataclass(frozen=True)
class Monitored:
    """What the run watches, as set-up found it.

    Attributes:
        name: Of the metric; None where nothing is logged.
        mode: Which way it is better.
    """

    name: str | None = None
    mode: MonitorMode = "max"


class RoundControl(Protocol):
    """A running trainer, as the rounds and their callbacks see it. `FederatedTrainer` is one.

    Attributes:
        settings: What the run was asked for.
        monitored: What it watches.
        run_dir: Where it writes.
        summary: What `summary.json` holds, once the run is complete.
        should_stop: Set it to end the run after this round.
        clock: Where its wall time goes.
    """

    settings: RunSettings
    monitored: Monitored
    run_dir: Path
    summary: dict[str, Any]
    should_stop: bool
    clock: PhaseClock

    @property
    def is_global_zero(self) -> bool:
        """Whether this process prints and writes."""

    def call(self, hook: str, *arguments: Any) -> None:
        """Notify every round callback."""


class RoundCallback:
    """Base class of what `FederatedTrainer(callbacks=[...])` takes; every hook does nothing by default.

    Hooks only listen: what they return is ignored. To end the run early, set `trainer.should_stop = True`. Hooks run
    on every process, with the same records on each at the end of a round, so that a decision taken from records is the
    same everywhere; write or print only where `trainer.is_global_zero`.
    """

    def on_fit_start(self, trainer: RoundControl) -> None:
        """The run is set up; no round has begun. A resumed run has loaded its state."""

    def on_round_start(self, trainer: RoundControl, round_number: int, plan: Plan) -> None:
        """The cohort and its modes are known; no client has trained yet.

        Args:
            trainer: The running trainer.
            round_number: Number of the round, from 1.
            plan: Mode of every client of the cohort.
        """

    def on_client_start(self, trainer: RoundControl, client_id: ClientId, mode: Mode) -> None:
        """One client of the round is about to train on this process."""

    def on_client_end(self, trainer: RoundControl, record: ClientRecord) -> None:
        """One client has trained on this process; other processes report their own clients."""

    def on_round_end(self, trainer: RoundControl, record: RoundRecord) -> None:
        """The round is aggregated and evaluated; the same record on every process. Round 0 is the evaluation before."""

    def on_round_saved(self, trainer: RoundControl, record: RoundRecord) -> None:
        """The round's record is on the disk, and its checkpoint if one was due: a run that is killed now keeps it."""

    def on_fit_end(self, trainer: RoundControl) -> None:
        """The last round is over; model and summary are written."""

    def on_exception(self, trainer: RoundControl, error: BaseException) -> None:
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


def split_callbacks(
    callbacks: Sequence[RoundCallback | Allocator] | RoundCallback | Allocator | None,
) -> tuple[list[RoundCallback], Allocator | None]:
    """Round callbacks, and the allocator if there is one.

    Raises:
        ConfigurationError: Several allocators, something that is neither, or two callbacks of one name.
    """
    given = [callbacks] if isinstance(callbacks, RoundCallback | Allocator) else list(callbacks or [])
    allocators = [each for each in given if isinstance(each, Allocator)]
    if len(allocators) > 1:
        names = ", ".join(type(each).__name__ for each in allocators)
        raise ConfigurationError(f"callbacks hold {len(allocators)} allocators ({names}); give one at most")
    for each in given:
        if not isinstance(each, RoundCallback | Allocator):
            raise ConfigurationError(
                f"callbacks: {type(each).__name__} is neither a RoundCallback nor an Allocator; Lightning's own "
                "callbacks belong to lightning.Trainer"
            )
    rest = [each for each in given if isinstance(each, RoundCallback)]
    keys = [each.state_key for each in rest]
    if len(set(keys)) != len(keys):
        raise ConfigurationError(f"callbacks: two share the state_key {max(keys, key=keys.count)!r}; give each its own")
    return rest, allocators[0] if allocators else None
