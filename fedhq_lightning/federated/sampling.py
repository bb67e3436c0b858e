"""Which clients take part in a round."""

import random
from collections.abc import Callable, Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.devices import Availability
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.seeds import derive_seed
from fedhq_lightning.types import ClientId


class CohortSampler:
    """Draws each round's cohort from the clients that hold data and are there: uniformly, without replacement.

    Or by Poisson sampling, as privacy is accounted: each by a coin flip of its own. A cohort then has `cohort_size`
    clients on average, and may have none.

    Args:
        client_ids: All registered clients.
        clients_per_round: A count, a fraction of the clients in (0, 1], or None for all.
        seed: The run's seed.
        empty_positions: Positions in `client_ids` of clients without data; never drawn.
        availability: When clients are there, by position; None where everybody always is.
        by_coin_flips: Poisson sampling; everybody is taken to be there.
        holds: Whether the client at a position holds data, asked of those who are drawn, where `empty_positions` does
            not tell; others take the place of those who hold none, but for coin flips.

    Raises:
        ConfigurationError: No clients, all clients empty, a cohort larger than the clients that hold data, or a
            count or fraction out of range.
    """

    def __init__(
        self,
        client_ids: Sequence[ClientId],
        clients_per_round: int | float | None,
        seed: int,
        empty_positions: frozenset[int] = frozenset(),
        availability: Availability | None = None,
        by_coin_flips: bool = False,
        holds: Callable[[int], bool] | None = None,
    ) -> None:
        available = len(client_ids) - len(empty_positions)
        if not len(client_ids):
            raise ConfigurationError("no clients: the data module's client_ids is empty; register at least one client")
        if available == 0:
            raise ConfigurationError(
                f"all {len(client_ids)} clients are empty: at least one must hold training examples"
            )
        self._client_ids = client_ids
        self._seed = seed
        self._positions: Sequence[int] = range(len(client_ids))
        if empty_positions:
            self._positions = [position for position in self._positions if position not in empty_positions]
        self.cohort_size = _cohort_size(clients_per_round, available)
        self._availability = None if availability is None else availability.without(empty_positions)
        self._has_warned = False
        self._by_coin_flips = by_coin_flips
        self._holds = holds or (lambda position: True)
        self.rate = self.cohort_size / available

    def with_data(self) -> Sequence[ClientId]:
        """The clients that hold data, as far as that is known; `client_ids` itself where all do."""
        if isinstance(self._positions, range):
            return self._client_ids
        return [self._client_ids[position] for position in self._positions]

    def cohort(
        self,
        round_number: int,
        virtual_seconds: float | None = None,
        without: frozenset[int] = frozenset(),
        busy: frozenset[int] = frozenset(),
    ) -> list[ClientId]:
        """The round's clients, in the order of `client_ids`: fewer than `cohort_size` where fewer are there.

        Args:
            round_number: From 1.
            virtual_seconds: When the round begins, in virtual seconds since the start of the run. Where nobody is there
                by then, the round waits `wait_seconds` for the next who comes. None draws as if everybody were there.
            without: Positions of clients that sit out; others are drawn in their place. Where nobody else is left, they
                do not. Where coins are flipped nobody takes their place.
            busy: Positions of clients that still train: others are drawn, as many as places are free.
        """
        if self._by_coin_flips:
            positions = sorted(self._flipped(round_number, without))
        elif busy or virtual_seconds is None or self._availability is None:
            positions = sorted(self._drawn(round_number, without, busy))
        else:
            present = self._availability.present(virtual_seconds)
            rest = present[~np.isin(present, list(without))] if without else present
            present = rest if len(rest) else present
            self._warn_if_short(round_number, len(present))
            # By rank, so that no list of everybody is made; where all are there, the draw is that of a run without a
            # trace.
            drawn = self._generator(round_number).sample(range(len(present)), min(self.cohort_size, len(present)))
            positions = present[sorted(drawn)].tolist()
        return [self._client_ids[position] for position in positions]

    def _generator(self, round_number: int) -> random.Random:
        return random.Random(derive_seed(self._seed, "cohort", round_number))

    def _drawn(self, round_number: int, without: frozenset[int], busy: frozenset[int]) -> list[int]:
        """Positions, in no order."""
        free, everybody = max(0, self.cohort_size - len(busy)), len(self._positions)
        num_drawn = free + len(busy | without)
        while True:
            drawn = self._generator(round_number).sample(self._positions, min(num_drawn, everybody))
            idle = [each for each in drawn if each not in busy and self._holds(each)]
            rest = [each for each in idle if each not in without]
            if len(rest) >= free or num_drawn >= everybody:
                return (rest or idle)[:free]
            num_drawn *= 2  # some hold no data

    def _flipped(self, round_number: int, without: frozenset[int]) -> list[int]:
        """Positions, in no order: how many coins show heads, then whose, which comes to one flip after another."""
        seed = derive_seed(self._seed, "coins", round_number)
        count = int(np.random.default_rng(seed).binomial(len(self._positions), self.rate))
        drawn = random.Random(seed).sample(self._positions, count)
        return [each for each in drawn if each not in without and self._holds(each)]

    def wait_seconds(self, virtual_seconds: float) -> float:
        """Virtual seconds that a round waits for its first client; 0 where somebody is there.

        Args:
            virtual_seconds: When the round begins, in virtual seconds since the start of the run.
        """
        return 0.0 if self._availability is None else self._availability.wait_seconds(virtual_seconds)

    def _warn_if_short(self, round_number: int, num_present: int) -> None:
        if num_present < self.cohort_size and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"round {round_number}: {num_present} clients are available for a cohort of {self.cohort_size}; "
                "such rounds go on with those who are there (said once)"
            )


def _cohort_size(clients_per_round: int | float | None, available: int) -> int:
    if clients_per_round is None:
        return available
    if isinstance(clients_per_round, float):
        if not 0 < clients_per_round <= 1:
            raise ConfigurationError(
                f"clients_per_round {clients_per_round}: a fraction must be in (0, 1]; for a count give an integer"
            )
        return max(1, round(clients_per_round * available))
    if not 1 <= clients_per_round <= available:
        raise ConfigurationError(
            f"clients_per_round {clients_per_round}: must be 1..{available}, the clients that hold data; "
            "lower it or register more clients"
        )
    return clients_per_round


def share_of(processes: Processes, cohort: Sequence[ClientId], work: Sequence[float]) -> list[ClientId]:
    """This process's part of the cohort: the largest first, each to the process with the least work so far.

    Args:
        processes: Those that share it.
        cohort: In one order on all of them.
        work: Of each client, likewise.
    """
    loads = [0.0] * processes.count
    mine = []
    for position in sorted(range(len(cohort)), key=lambda index: (-work[index], index)):
        rank = loads.index(min(loads))
        loads[rank] += work[position]
        if rank == processes.rank:
            mine.append(cohort[position])
    return mine
