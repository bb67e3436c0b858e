"""Epsilon of noisy steps on randomly drawn members, as Opacus accounts it.

What is accounted is the sampled Gaussian mechanism: at every step each member is drawn by a coin flip of its own
(Poisson sampling), what the drawn ones give is bounded in norm and added up, and Gaussian noise is added.

Source: RDP, Mironov et al. 2019, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", with the conversion of
Balle et al. 2020; PRV, Gopi et al. 2021, "Numerical Composition of Differential Privacy".
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.privacy.mechanisms import Privacy
from fedhq_lightning.federated.privacy.opacus_quietly import from_opacus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_FOR_PRV = 100.0
"""Epsilon by RDP beyond which the PRV accountant would take gigabytes; RDP's figure, an upper bound too, is told."""


class Accountant:
    """Tells epsilon at a mechanism's delta.

    Args:
        privacy: The mechanism.

    Raises:
        ConfigurationError: Opacus is not installed.
    """

    def __init__(self, privacy: Privacy) -> None:
        self._opacus = from_opacus("accountants")
        self._rdp = from_opacus("accountants.analysis.rdp")
        self._noise = privacy.noise_multiplier
        self._delta = privacy.delta
        self._is_prv = privacy.accountant == "prv"
        self._rdp_of_one = cache(self._one_step)
        self._prv = cache(self._by_prv)

    def epsilon(self, rate: float, num_steps: int) -> float:
        """After a number of steps; 0 before the first.

        Args:
            rate: Chance with which a member is drawn, in (0, 1].
            num_steps: Taken in all.
        """
        if not num_steps:
            return 0.0
        bound, _ = self._by_rdp(rate, num_steps)
        return self._prv(rate, num_steps) if self._is_prv and bound <= _MOST_FOR_PRV else bound

    def check(self, rate: float, num_steps: int) -> None:
        """Refuse what the accountant cannot account.

        Args:
            rate: As for `epsilon`.
            num_steps: The most that will be taken.

        Raises:
            ConfigurationError: PRV where every member is drawn; so little noise that no order of RDP fits.
        """
        if self._is_prv and rate == 1:
            raise ConfigurationError(
                "privacy: accountant 'prv' is made for members drawn at random, and here every one is in every step; "
                "take accountant: rdp, or draw fewer"
            )
        bound, order = self._by_rdp(rate, num_steps)
        smallest = self._orders[0]
        if not math.isfinite(bound) or order == smallest or (self._is_prv and bound > _MOST_FOR_PRV):
            raise ConfigurationError(
                f"privacy: out of the range of the {'PRV' if self._is_prv else 'RDP'} accountant: noise_multiplier "
                f"{self._noise:g}, sampling rate {rate:.3g} and {num_steps} steps come to an epsilon of {bound:.3g}, "
                "which promises nothing; add noise, take fewer steps, or draw fewer at a time"
            )

    def most_steps(self, rate: float, max_epsilon: float, limit: int) -> int:
        """How many steps keep within a budget, `limit` at most.

        Args:
            rate: As for `epsilon`.
            max_epsilon: The budget.
            limit: Where to stop looking.
        """
        within, beyond = 0, limit + 1
        while beyond - within > 1:
            middle = (within + beyond) // 2
            if self.epsilon(rate, middle) <= max_epsilon:
                within = middle
            else:
                beyond = middle
        return within

    @property
    def _orders(self) -> list[float]:
        return list(self._opacus.RDPAccountant.DEFAULT_ALPHAS)

    def _by_rdp(self, rate: float, num_steps: int) -> tuple[float, float]:
        """Epsilon, and the order that gave it; steps add up, so that one of each rate is worked out."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an order at the end of the list: the bound holds, it is not the least
            epsilon, order = self._rdp.get_privacy_spent(
                orders=self._orders, rdp=self._rdp_of_one(rate) * num_steps, delta=self._delta
            )
        return float(epsilon), float(order)

    def _one_step(self, rate: float) -> NDArray[np.float64]:
        found: Any = self._rdp.compute_rdp(q=rate, noise_multiplier=self._noise, steps=1, orders=self._orders)
        return found  # type: ignore[no-any-return]  # opacus ships no types

    def _by_prv(self, rate: float, num_steps: int) -> float:
        accountant = self._opacus.PRVAccountant()
        accountant.history = [(self._noise, rate, num_steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the RDP that it finds its domain with
            return float(accountant.get_epsilon(self._delta))
