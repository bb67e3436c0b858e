"""The fit step of a round: who has its clients train. Here this process does, one client after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedhq_lightning.federated.callback import RoundControl
from fedhq_lightning.federated.client_fit import ClientFitter, Update
from fedhq_lightning.federated.server import ServerRound
from fedhq_lightning.support.notes import noted
from fedhq_lightning.support.phase_clock import PhaseClock
from fedhq_lightning.types import ClientId, Mode


@dataclass(frozen=True)
class ClientTask:
    """What one client is to do in a round.

    Attributes:
        client_id: The client.
        mode: How it trains.
        learning_rate_scale: Factor on every learning rate.
        is_first: Whether it takes part for the first time, and receives what no round changes too.
        work: Share of its local steps.
    """

    client_id: ClientId
    mode: Mode
    learning_rate_scale: float = 1.0
    is_first: bool = False
    work: float = 1.0


class CohortFit(Protocol):
    """Has clients train, wherever they are.

    Attributes:
        first_error: What the first client's code raised in round 1, until somebody has looked; None elsewhere.
    """

    first_error: BaseException | None

    def updates(
        self, at_server: ServerRound, tasks: Sequence[ClientTask], control: RoundControl, clock: PhaseClock
    ) -> Iterator[Update]:
        """One update a task, in any order, as they come.

        Args:
            at_server: The round.
            tasks: One a client.
            control: Told of every client that begins.
            clock: Of the run; its phase "fit" is the local fits.
        """

    def why_not_finite(self, round_number: int, client_id: ClientId) -> str:
        """Why an update of a client's holds values that are not finite, in words."""


class CohortFitHere:
    """Has clients train on this process.

    Args:
        fitter: Trains one.
        deadline: Virtual seconds after which a client is late, or None.
        fixed_bytes: Received beside the round's payload by a client that takes part for the first time.
    """

    def __init__(self, fitter: ClientFitter, deadline: float | None, fixed_bytes: int) -> None:
        self._fitter = fitter
        self._deadline = deadline
        self._fixed_bytes = fixed_bytes

    @property
    def first_error(self) -> BaseException | None:
        """See `CohortFit`."""
        return self._fitter.first_error

    @first_error.setter
    def first_error(self, error: BaseException | None) -> None:
        self._fitter.first_error = error

    def updates(
        self, at_server: ServerRound, tasks: Sequence[ClientTask], control: RoundControl, clock: PhaseClock
    ) -> Iterator[Update]:
        """See `CohortFit`; one client after another, as they are asked for."""
        for task in tasks:
            control.call("on_client_start", task.client_id, task.mode)
            note = f"while client {task.client_id} trained in {task.mode}, in round {at_server.number}"
            with clock.phase("fit"), noted(note):
                update = self._fitter.fit(
                    at_server.number,
                    task.client_id,
                    task.mode,
                    at_server.received,
                    at_server.downlink_bytes + (self._fixed_bytes if task.is_first else 0),
                    task.learning_rate_scale,
                    self._deadline,
                    task.is_first,
                    task.work,
                    at_server.received_beside,
                )
            yield update

    def why_not_finite(self, round_number: int, client_id: ClientId) -> str:
        """See `CohortFit`; the client's batches are gone through once more."""
        return self._fitter.why_not_finite(round_number, client_id)
