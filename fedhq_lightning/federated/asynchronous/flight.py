"""Updates on their way: they wait on disk until the step of the server that takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator
from fedhq_lightning.federated.asynchronous.arrivals import InFlight, first_arrivals
from fedhq_lightning.federated.client_fit import Update
from fedhq_lightning.federated.sampling import share_of
from fedhq_lightning.federated.server import Server, ServerRound
from fedhq_lightning.run.client_store import ClientStore
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import ClientId, Plan, StateDict

_PART, _NAME = "update", "payload"


class Flight:
    """Takes updates from the clients that have just trained, and gives those that come first.

    Args:
        aggregator: Says how many a step takes, and what they weigh.
        clock: Knows the clients' positions.
        state: Holds who is on the way.
        store: Where payloads wait: any process may take up what another has put there, and so may a resumed run.
        processes: The others.
    """

    def __init__(
        self,
        aggregator: AsynchronousAggregator,
        clock: VirtualClock,
        state: RunState,
        store: ClientStore,
        processes: Processes,
    ) -> None:
        self._aggregator = aggregator
        self._clock = clock
        self._state = state
        self._store = store
        self._processes = processes
        self._weights: dict[ClientId, float] = {}
        self._received: StateDict = {}
        self.round_seconds = 0.0

    def positions(self) -> frozenset[int]:
        """Of the clients that are on the way, and cannot begin anew."""
        return frozenset(each["position"] for each in self._state.in_flight)

    def weighing(self, server: Server) -> Server:
        """The server, with updates weighed by their age."""
        return replace(server, transforms=(*server.transforms, self._weigh))

    def first(self, at_server: ServerRound, begun: Iterable[Update]) -> Iterator[Update]:
        """Train who begins in this round; then this process's share of the updates that come first.

        Args:
            at_server: The round.
            begun: The clients that begin now, of this process.
        """
        now, number = self._state.virtual_seconds, at_server.number
        mine = [self._put(update, now).to_plain() for update in begun]
        new = [each for part in self._processes.gather(mine) for each in part]  # all payloads are on disk by now
        everyone = [InFlight.from_plain(each) for each in [*self._state.in_flight, *new]]
        arrived, rest = first_arrivals(everyone, self._aggregator.buffer_size)
        self._state.in_flight = [each.to_plain() for each in rest]
        # An update may have come while clients took batch statistics after the last step.
        self.round_seconds = max(0.0, max((each.arrives for each in arrived), default=now) - now)
        records = {each.record.client_id: each.arrived_in(number) for each in arrived}
        self._weights = {each: self._aggregator.weight(record.staleness) for each, record in records.items()}
        self._received = {} if self._aggregator.sends_changes else at_server.received
        for client_id in share_of(self._processes, list(records), [1.0] * len(records)):
            yield self._taken(records[client_id])

    def plan(self, plan: Plan, clients: Iterable[ClientRecord]) -> Plan:
        """The plan of those who have come, with what was said of those who have begun."""
        return replace(plan, modes={each.client_id: each.mode for each in clients})

    def _put(self, update: Update, now: float) -> InFlight:
        record = update.record
        position = self._clock.position(record.client_id)
        if update.payload:
            payload = torch.frombuffer(bytearray(update.payload), dtype=torch.uint8)
            self._store.save(position, record.round, {_PART: {_NAME: payload}})
        return InFlight(position, now + record.virtual_seconds, record)

    def _taken(self, record: ClientRecord) -> Update:
        payload = b""
        if record.status == "ok":
            kept = self._store.load(self._clock.position(record.client_id), record.round + 1)
            if _NAME not in kept.get(_PART, {}):
                raise ConfigurationError(
                    f"the update of client {record.client_id}, which was on its way, is not there any more; start a "
                    "new run"
                )
            payload = kept[_PART][_NAME].numpy().tobytes()
        return Update(record, payload)

    def _weigh(self, client_id: ClientId, state: StateDict) -> StateDict:
        """An update of less weight: a smaller change, or a model nearer to the global one."""
        weight = self._weights[client_id]
        if weight == 1:
            return state
        if self._aggregator.sends_changes:
            return {name: weight * value for name, value in state.items()}
        return {name: torch.lerp(self._received[name].float(), value.float(), weight) for name, value in state.items()}
