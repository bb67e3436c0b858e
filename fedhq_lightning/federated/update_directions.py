"""How far each client's update of a round points away from the cohort's mean, found while updates stream by."""

from __future__ import annotations

from torch import Tensor

from fedhq_lightning.federated.wire import Uplink
from fedhq_lightning.risk.update_sketch import Sketcher, direction_divergence
from fedhq_lightning.support.seeds import derive_seed
from fedhq_lightning.types import ClientId, StateDict


class UpdateDirections:
    """One round's updates: a sketch of every one that this process decoded, 8 KiB each, until the mean of all is there.

    An update is how the decoded model differs from the one that the client received, rounding included: with `uplink:
    weights` at few bits, what rounding does to everybody alike makes updates look more alike than they were. Trained
    parameters count only: frozen tensors do not travel, and buffers are statistics, not directions.

    Args:
        uplink: What is decoded: local models, or differences.
        sketcher: The same on every process and in every round.
        parameter_names: Names of trained parameters.
        received: The model that every client of the round received.
    """

    def __init__(
        self, uplink: Uplink, sketcher: Sketcher, parameter_names: frozenset[str], received: StateDict
    ) -> None:
        self._sketcher = sketcher
        self._names = parameter_names
        self._base = received if uplink == "weights" else None
        self._sketches: dict[ClientId, Tensor] = {}

    def add(self, client_id: ClientId, decoded: StateDict) -> None:
        """Remember one client's update, as `Link.receive` gave it."""
        self._sketches[client_id] = self._sketch(decoded)

    def divergences(self, mean: StateDict) -> dict[ClientId, float | None]:
        """1 - cosine with the mean for every client added, 0 to 2; None where an update has no direction.

        Args:
            mean: Of what all clients of all processes sent, the same on every process, as `ExactMean.mean` gives it.
        """
        target = self._sketch(mean)
        return {client_id: direction_divergence(sketch, target) for client_id, sketch in self._sketches.items()}

    def _sketch(self, state: StateDict) -> Tensor:
        trained = {name: value.double() for name, value in state.items() if name in self._names}
        if self._base is not None:
            trained = {name: value - self._base[name].double() for name, value in trained.items()}
        return self._sketcher.sketch(trained)


def sketcher_of(seed: int) -> Sketcher:
    """The run's sketcher.

    Args:
        seed: The run's.
    """
    return Sketcher(derive_seed(seed, "update directions"))
