"""The server's step: receive, check, transform, accumulate, reduce, step.

One piece of code for `FederatedTrainer`, whose processes each receive their share of a cohort's updates, and for silos,
each of which receives everybody's and computes the same global model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.aggregators import Aggregator
from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.federated.payload import PackedState, PayloadError
from fedhq_lightning.federated.update_directions import UpdateDirections
from fedhq_lightning.federated.wire import Link, check_finite
from fedhq_lightning.risk.update_sketch import Sketcher
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.tensors import same_values
from fedhq_lightning.types import ClientId, StateDict

ServerTransform = Callable[[ClientId, StateDict], StateDict]
"""What is done to one decoded update before it is added up; it gives a new state and leaves the old one alone."""


class Accumulator(Protocol):
    """Adds up a round's updates; neither their order nor the processes that they reach may change a bit."""

    def add(self, state: Mapping[str, Tensor], weight: int) -> None:
        """Add one update whole, or nothing of it.

        Raises:
            ValueError: It cannot be added.
        """

    def mean(self, processes: Processes) -> tuple[StateDict, int]:
        """Mean of all processes' updates in float32, and the sum of their weights, the same on every process.

        Called once, by every process, at the end. Of no update the mean is empty and the weight 0.
        """


@dataclass(frozen=True)
class Server:
    """What the step is made of, the same in every round of a run. Each part with a default is a socket.

    An update that fails a check is left out and its client named, and the round goes on without it. What no round
    changes (`Link.fixed_names`) is with the clients that took part before, so a step must leave it alone. What a client
    adds to its own gradients is `Aggregator.client_term`.

    Attributes:
        link: Encodes what goes down, decodes and checks what comes up.
        aggregator: Makes the next global model from the mean.
        parameter_names: Trained parameters, by their names in the state.
        processes: Those that receive updates of one round. A silo receives everybody's: it is alone.
        transforms: Applied to each decoded update, in order.
        accumulator: Makes an empty one for each round.
        sketcher: Where the directions of updates are wanted.
    """

    link: Link
    aggregator: Aggregator
    parameter_names: frozenset[str]
    processes: Processes
    transforms: tuple[ServerTransform, ...] = ()
    accumulator: Callable[[], Accumulator] = ExactMean
    sketcher: Sketcher | None = None

    def open_round(self, round_number: int, current: StateDict) -> ServerRound:
        """Begin a round: encode the global model as every client of the round receives it.

        Args:
            round_number: From 1.
            current: The global model.
        """
        received, num_bytes = self.link.down(current, round_number)
        return ServerRound(self, round_number, current, received, num_bytes)


@dataclass(frozen=True)
class Aggregated:
    """What follows from the updates of a round; the model is the same on every process.

    Attributes:
        state: The next global model.
        total_weight: Sum of the weights of the updates that count; 0 where none did, and the model stayed.
        refused: Client to why its update was left out, of those that this process received.
        divergences: 1 - cosine with the mean of each update that this process received, where asked for.
    """

    state: StateDict
    total_weight: int
    refused: Mapping[ClientId, str]
    divergences: Mapping[ClientId, float | None]


class ServerRound:
    """One round at the server.

    Args:
        server: The run's.
        round_number: From 1.
        current: The global model.
        received: What every client of the round received.
        downlink_bytes: Size of the round's payload, for one client.
    """

    def __init__(
        self, server: Server, round_number: int, current: StateDict, received: StateDict, downlink_bytes: int = 0
    ) -> None:
        self.number = round_number
        self.received = received
        self.downlink_bytes = downlink_bytes
        self._server = server
        self._current = current
        self._sum = server.accumulator()
        self._refused: dict[ClientId, str] = {}
        self._directions: UpdateDirections | None = None
        if server.sketcher is not None:
            self._directions = UpdateDirections(server.link.uplink, server.sketcher, server.parameter_names, received)

    def receive(self, client_id: ClientId, payload: bytes, num_examples: int) -> None:
        """Check one client's update and add it up, or leave it out and note why.

        Args:
            client_id: Who should have sent it.
            payload: What arrived.
            num_examples: Its weight.
        """
        try:
            if num_examples < 1:
                raise PayloadError("it saw no example in this round")
            if isinstance(self._sum, ExactMean) and not self._server.transforms and self._directions is None:
                self._add_unseen(self._sum, self._server.link.open(payload, self.number, client_id), num_examples)
                return
            update = self._server.link.receive(payload, self.number, client_id)
            for transform in self._server.transforms:
                update = transform(client_id, update)
            self._sum.add(update, num_examples)
        except (PayloadError, ValueError) as error:
            self._refused[client_id] = str(error)
            return
        if self._directions is not None:
            self._directions.add(client_id, update)

    @staticmethod
    def _add_unseen(total: ExactMean, update: PackedState, num_examples: int) -> None:
        """Add an update that nobody else looks at: from payload to sum in one pass, which finds out what is wrong."""
        try:
            total.add(update, num_examples)
        except ValueError:
            check_finite(update)
            raise

    def close(self) -> Aggregated:
        """Bring together what all processes received, step, and let go of the sum, which is large."""
        server = self._server
        decoded_mean, total_weight = self._sum.mean(server.processes)
        self._sum = server.accumulator()
        if not total_weight:
            return Aggregated(self._current, 0, self._refused, {})
        divergences = {} if self._directions is None else self._directions.divergences(decoded_mean)
        mean = server.link.combine(decoded_mean, self.received)
        state = server.aggregator.step(self._current, mean, server.parameter_names)
        _check_fixed(server, self._current, state)
        return Aggregated(state, total_weight, self._refused, divergences)


def _check_fixed(server: Server, before: StateDict, after: StateDict) -> None:
    """Refuse a step that changed what clients have from their first round on."""
    for name in server.link.fixed_names:
        if after[name] is not before[name] and not same_values(after[name], before[name]):
            raise ConfigurationError(
                f"{type(server.aggregator).__name__}.step changed {name}, which no client sends and which goes down "
                "once to a client; a step leaves alone what the mean lacks"
            )
