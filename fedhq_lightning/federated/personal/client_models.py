"""Which model a client predicts with: the global one, with what it keeps of its own."""

from __future__ import annotations

from collections.abc import Callable

from fedhq_lightning.federated.statistics_round import StatisticsRound
from fedhq_lightning.run.client_store import PERSONAL, ClientStore
from fedhq_lightning.support.views import DEPLOYED
from fedhq_lightning.types import ClientId, StateDict


class ClientModels:
    """Gives each client's model, as it was after a round.

    Args:
        store: Holds what clients keep; None where nothing of the model is their own.
        position: Of a client among all.
        statistics: Takes those batch statistics anew that are a client's own, in both views of its model; None where
            there are none, or its running statistics are those of both.
    """

    def __init__(
        self,
        store: ClientStore | None,
        position: Callable[[ClientId], int],
        statistics: StatisticsRound | None = None,
    ) -> None:
        self._store = store
        self._position = position
        self._statistics = statistics

    def own(self, client_id: ClientId, round_number: int) -> StateDict:
        """What a client holds of its own after a round; empty where it has not taken part by then."""
        if self._store is None:
            return {}
        return self._store.load(self._position(client_id), round_number + 1).get(PERSONAL, {})

    def of(self, client_id: ClientId, round_number: int, state: StateDict) -> StateDict:
        """A client's model.

        Args:
            client_id: The client.
            round_number: After which.
            state: The global model.

        Returns:
            By the names of a run's state; the global model itself, the same object, where nothing is the client's own.
        """
        own = self.own(client_id, round_number)
        if not own:
            return state
        whole = {name: value for name, value in state.items() if name.removeprefix(DEPLOYED) not in own} | own
        return whole if self._statistics is None else whole | self._statistics.of_client(client_id, round_number, whole)

    def statistics_seconds(self, client_id: ClientId) -> float:
        """Virtual seconds in which a client takes the batch statistics of its own model anew; 0 without any."""
        return 0.0 if self._statistics is None else self._statistics.own_seconds(client_id)
