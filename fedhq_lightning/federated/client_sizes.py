"""How many examples each client holds: of few clients all are asked before round 1, of many those who are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.devices import Fleet
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.clients import client_sizes, num_examples
from fedhq_lightning.federated.privacy.mechanisms import LocalPrivacy
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.support.samples import FEW, sample_of
from fedhq_lightning.support.seeds import generators_kept
from fedhq_lightning.types import ClientId

_MOST_SAMPLED = 1_000


class ClientSizes:
    """Training examples of clients by their positions. All are asked, once.

    What a client claimed later would be its weight in the average, of its own choice.

    Args:
        datamodule: Tells them.
        client_ids: All registered clients.

    Attributes:
        looked_at: Clients with data, in order, who stand for all where asking everybody would take too long: all.
        typical: Median over these.
        total: Of all clients.
        empty: Positions of clients without data.
        holds: Whether the client at a position holds data, where `empty` does not tell; None where it does.

    Raises:
        ConfigurationError: No whole number, or less than 0.
    """

    def __init__(self, datamodule: FederatedDataModule, client_ids: Sequence[ClientId]) -> None:
        self._sizes = client_sizes(datamodule, client_ids)
        self.empty = frozenset[int](np.flatnonzero(self._sizes == 0).tolist())
        self.holds: Callable[[int], bool] | None = None
        self.looked_at = client_ids
        if self.empty:
            self.looked_at = [each for position, each in enumerate(client_ids) if position not in self.empty]
        self.typical = float(np.median(self._sizes[self._sizes > 0])) if len(self.looked_at) else 0.0
        self.total = int(self._sizes.sum())
        self._ids = client_ids

    def of(self, position: int) -> int:
        """Of the client at a position."""
        return int(self._sizes[position])

    def all(self) -> list[int]:
        """Of every client, in order."""
        return [self.of(position) for position in range(len(self._ids))]

    def tell_of_empty(self) -> None:
        """Say who is left out, where anybody is."""
        if self.empty:
            names = ", ".join(str(self._ids[position]) for position in sorted(self.empty)[:5])
            rank_zero_warn(f"{len(self.empty)} of {len(self._ids)} clients hold no examples and are left out: {names}")


class SampledSizes(ClientSizes):
    """The same where there are many: a thousand are asked before round 1, others when they are drawn.

    Raises:
        ConfigurationError: Likewise; none of the sample holds any.
    """

    def __init__(self, datamodule: FederatedDataModule, client_ids: Sequence[ClientId]) -> None:
        self._datamodule, self._ids = datamodule, client_ids
        self.empty = frozenset()
        self.holds = self._holds
        sample = sample_of(range(len(client_ids)), _MOST_SAMPLED)
        with generators_kept():
            self._known = {position: num_examples(datamodule, client_ids[position]) for position in sample}
        held = [position for position in sample if self._known[position]]
        if not held:
            raise ConfigurationError(
                f"{len(sample):,} of {len(client_ids):,} clients were looked at, and hold no examples; register those "
                "that hold any"
            )
        self.looked_at = [client_ids[position] for position in held]
        sizes = [self.of(position) for position in held]
        self.typical = float(np.median(sizes))
        self.total = sum(sizes) * len(client_ids) // len(sample)
        self._num_empty, self._num_sampled = len(sample) - len(held), len(sample)

    def of(self, position: int) -> int:
        """Of the client at a position, who is asked now if nobody did before."""
        if position not in self._known:
            with generators_kept():  # so that it does not matter when it is asked
                self._known[position] = num_examples(self._datamodule, self._ids[position])
        return self._known[position]

    def tell_of_empty(self) -> None:
        """Say how many are passed over, by the sample."""
        if self._num_empty:
            rank_zero_warn(
                f"{self._num_empty} of {self._num_sampled:,} clients that were looked at hold no examples; such "
                f"clients are passed over when they are drawn from the {len(self._ids):,}"
            )

    def _holds(self, position: int) -> bool:
        return self.of(position) > 0


def sizes_of(
    settings: RunSettings, datamodule: FederatedDataModule, client_ids: Sequence[ClientId], fleet: Fleet
) -> ClientSizes:
    """All sizes where clients are few, ten cohorts at most, or something needs all; else those of who is drawn.

    Args:
        settings: Of the run.
        datamodule: Tells sizes.
        client_ids: All registered clients.
        fleet: Of the run; a trace names every client.

    Raises:
        ConfigurationError: See both classes.
    """
    count, cohort = len(client_ids), settings.clients_per_round
    most_drawn = count if cohort is None else cohort * count if isinstance(cohort, float) else cohort
    needs_all = (
        settings.secure_aggregation is not None  # the largest sizes bound a cohort's sum
        or isinstance(settings.privacy, LocalPrivacy)  # whose budget lasts longest
        or fleet.availability is not None  # who of those that are there may be drawn
    )
    if needs_all or count <= max(FEW, 10 * most_drawn):
        return ClientSizes(datamodule, client_ids)
    return SampledSizes(datamodule, client_ids)
