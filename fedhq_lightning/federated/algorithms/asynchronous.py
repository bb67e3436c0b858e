"""What asynchronous algorithms have in common: a step takes the first updates that come, weighed by their age."""

from __future__ import annotations

import math
from typing import ClassVar

from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.aggregator import Aggregator, Gathered
from fedhq_lightning.federated.algorithms.fed_avg import FedAvg
from fedhq_lightning.types import StateDict


class AsynchronousAggregator(Aggregator):
    """Moves the model by a share of the mean change, each client's weighed by its examples and its age.

    `FederatedTrainer` has `clients_per_round` clients train at once. A round is one step of the server: it ends when
    so many updates have come, in virtual time; the others go on training from the model that they have. Those of the
    next round begin in the places that became free.

    Args:
        buffer_size: Updates that a step takes.
        server_lr: Share of the mean change by which the model moves.
        staleness_exponent: Weight of an update whose model is s steps old: (1 + s) to the power of minus this.

    Attributes:
        sends_changes: Whether clients send what they changed, of the model that they had, or their models.

    Raises:
        ConfigurationError: A value out of its range.
    """

    sends_changes: ClassVar[bool]

    def __init__(self, buffer_size: int, server_lr: float, staleness_exponent: float) -> None:
        name = type(self).__name__
        if isinstance(buffer_size, bool) or not isinstance(buffer_size, int) or buffer_size < 1:
            raise ConfigurationError(f"{name} buffer_size {buffer_size!r}: must be a whole number, 1 or more")
        if not 0 < server_lr < math.inf:
            raise ConfigurationError(f"{name}: the server's share of a change is {server_lr}, and must be above 0")
        if not 0 <= staleness_exponent < math.inf:
            raise ConfigurationError(
                f"{name} staleness_exponent {staleness_exponent}: must be 0 or more; with 0 age does not count"
            )
        self.buffer_size = buffer_size
        self.staleness_exponent = staleness_exponent
        self._server_lr = server_lr

    def weight(self, staleness: int) -> float:
        """Of an update whose model is so many steps old."""
        return float((1 + staleness) ** -self.staleness_exponent)

    @override
    def step(self, current: StateDict, gathered: Gathered) -> StateDict:
        following = FedAvg().step(current, gathered)
        if self._server_lr != 1:
            for name in gathered.parameter_names & gathered.mean.keys():
                start = current[name].float()
                following[name] = start.lerp(gathered.mean[name], self._server_lr).to(current[name].dtype)
        return following
