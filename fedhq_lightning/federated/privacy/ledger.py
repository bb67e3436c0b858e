"""What a run has spent of its clients' privacy, and whether it may go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.privacy.accounting import Accountant
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy, LocalPrivacy
from fedhq_lightning.federated.privacy.poisson_batches import PoissonBatches
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.types import ClientId, FitOptions

Spent = Mapping[int, int]
"""Client's position -> noisy steps that were taken on its examples and sent."""


class Ledger:
    """Of a run without privacy: nothing is spent, and it goes on."""

    def allowed(self, cohort: Sequence[ClientId], spent: Spent) -> Sequence[ClientId]:
        """Those of a cohort whose budget lasts for one more round."""
        return cohort

    def spend(self, spent: Spent, clients: Iterable[ClientRecord]) -> dict[int, int]:
        """What is spent after a round of these clients."""
        return dict(spent)

    def epsilon(
        self, round_number: int, before: float | None, spent: Spent, clients: Iterable[ClientRecord]
    ) -> float | None:
        """At the run's delta, after a round; None without privacy.

        Args:
            round_number: From 0.
            before: What the round before had.
            spent: After the round.
            clients: Of the round.
        """
        return None

    def is_over(self, round_number: int, spent: Spent) -> bool:
        """Whether no round may follow this one."""
        return False

    def tell_of_end(self, round_number: int, max_rounds: int, spent: Spent) -> None:
        """One line where the budget ended the run before its last round."""
        if round_number < max_rounds and self.is_over(round_number, spent):
            rank_zero_warn(
                f"the privacy budget ends the run after round {round_number} of {max_rounds}: another round would pass "
                "max_epsilon"
            )


class CentralLedger(Ledger):
    """Every round is one step on all clients, whoever was drawn.

    Args:
        privacy: Of the run.
        rate: Chance with which a client is drawn.
        max_rounds: Of the run.

    Raises:
        ConfigurationError: The first round would pass the budget, or the accountant cannot account the run.
    """

    def __init__(self, privacy: CentralPrivacy, rate: float, max_rounds: int) -> None:
        self._accountant, self._rate = Accountant(privacy), rate
        self._most_rounds: int | None = None
        if privacy.max_epsilon is not None:
            self._most_rounds = self._accountant.most_steps(rate, privacy.max_epsilon, max_rounds)
            if not self._most_rounds:
                raise _impossible(privacy.max_epsilon, self._accountant.epsilon(rate, 1), "round", rate)
        self._accountant.check(rate, self._most_rounds or max_rounds)

    @override
    def epsilon(
        self, round_number: int, before: float | None, spent: Spent, clients: Iterable[ClientRecord]
    ) -> float | None:
        return self._accountant.epsilon(self._rate, round_number)

    @override
    def is_over(self, round_number: int, spent: Spent) -> bool:
        return self._most_rounds is not None and round_number >= self._most_rounds


class LocalLedger(Ledger):
    """Every client's steps count for its own examples; the largest epsilon is the run's.

    Args:
        privacy: Of the run.
        options: Of a local fit.
        datamodule: Gives the loaders, whose batches say how examples are drawn.
        client_ids: Those with data.
        position: Of a client.
        max_rounds: Of the run.

    Raises:
        ConfigurationError: No client could take part once, the accountant cannot account one of the largest, or
            examples cannot be drawn one by one.
    """

    def __init__(
        self,
        privacy: LocalPrivacy,
        options: FitOptions,
        datamodule: FederatedDataModule,
        client_ids: Sequence[ClientId],
        position: Callable[[ClientId], int],
        max_rounds: int,
    ) -> None:
        self._accountant, self._privacy, self._options = Accountant(privacy), privacy, options
        self._datamodule, self._client_ids, self._position = datamodule, client_ids, position
        self._most_steps = cache(self._steps_within_budget)
        self._sampling = cache(self._rate_and_steps)
        self._max_rounds = max_rounds
        first = client_ids[0]
        rate, steps = self._sampling(first)
        self._accountant.check(rate, max(1, steps))
        if self.is_over(0, {}):
            assert privacy.max_epsilon is not None
            raise _impossible(privacy.max_epsilon, self._accountant.epsilon(rate, steps), "local fit", rate)

    @override
    def allowed(self, cohort: Sequence[ClientId], spent: Spent) -> Sequence[ClientId]:
        return [each for each in cohort if self._has_left(each, spent)]

    @override
    def spend(self, spent: Spent, clients: Iterable[ClientRecord]) -> dict[int, int]:
        after = dict(spent)
        for client in clients:
            if client.num_steps:
                place = self._position(client.client_id)
                after[place] = after.get(place, 0) + client.num_steps
        return after

    @override
    def epsilon(
        self, round_number: int, before: float | None, spent: Spent, clients: Iterable[ClientRecord]
    ) -> float | None:
        found = [
            self._accountant.epsilon(self._sampling(client.client_id)[0], spent[self._position(client.client_id)])
            for client in clients
            if client.num_steps
        ]
        return max([before or 0.0, *found])

    @override
    def is_over(self, round_number: int, spent: Spent) -> bool:
        if self._privacy.max_epsilon is None:
            return False
        return not any(self._has_left(each, spent) for each in self._client_ids)

    def _has_left(self, client_id: ClientId, spent: Spent) -> bool:
        if self._privacy.max_epsilon is None:
            return True
        rate, steps = self._sampling(client_id)
        return spent.get(self._position(client_id), 0) + steps <= self._most_steps(rate, steps)

    def _steps_within_budget(self, rate: float, steps: int) -> int:
        assert self._privacy.max_epsilon is not None
        return self._accountant.most_steps(rate, self._privacy.max_epsilon, self._max_rounds * steps)

    def _rate_and_steps(self, client_id: ClientId) -> tuple[float, int]:
        """Chance with which one of its examples is drawn, and steps of a local fit."""
        loader: Any = self._datamodule.train_dataloader(client_id)
        return PoissonBatches(loader).rate, self._options.num_steps(len(loader)) if len(loader) else 0


def _impossible(budget: float, needed: float, unit: str, rate: float) -> ConfigurationError:
    return ConfigurationError(
        f"privacy: max_epsilon {budget:g} is passed by the first {unit}, whose epsilon is {needed:.3g} (sampling rate "
        f"{rate:.3g}); raise it, add noise, or draw fewer at a time"
    )
