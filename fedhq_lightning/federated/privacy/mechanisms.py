"""What `trainer.privacy` may be: whose presence is hidden, and by how much noise."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

from fedhq_lightning.errors import ConfigurationError, nearest

AccountantName: TypeAlias = Literal["rdp", "prv"]
"""Which of Opacus' accountants tells epsilon."""
_MOST_NOISE = 1e6
"""Sums with more, in units of `NoisySum`, would leave 64 bits."""


class Privacy:
    """What both kinds have.

    Args:
        noise_multiplier: Standard deviation of the noise, in multiples of the norm that is clipped to.
        delta: Chance with which epsilon need not hold; well below 1 over the number of what is hidden.
        max_epsilon: A round that would pass it is not begun; None for no limit.
        accountant: `rdp` (Renyi) or `prv`, which is tighter and takes longer.

    Attributes:
        hides: What the presence of one is hidden of, in a word.
        briefing: What the terminal says before round 1.

    Raises:
        ConfigurationError: A value out of range.
    """

    hides = ""
    briefing = ""

    def __init__(
        self, noise_multiplier: float, delta: float, max_epsilon: float | None, accountant: AccountantName
    ) -> None:
        name = type(self).__name__
        _check(
            name, "noise_multiplier", noise_multiplier, _MOST_NOISE, "; without noise there is no privacy to account"
        )
        _check(name, "delta", delta, 1.0, "; well below 1 over the number of clients (or of a client's examples)")
        if delta == 1:
            raise ConfigurationError(f"{name} delta {delta!r}: must be below 1; with 1 everything may become known")
        if max_epsilon is not None:
            _check(name, "max_epsilon", max_epsilon, math.inf, "; null for no limit")
        if accountant not in get_args(AccountantName):
            allowed = get_args(AccountantName)
            near = nearest(str(accountant), allowed)
            raise ConfigurationError(f"{name} accountant {accountant!r}: allowed are {', '.join(allowed)}{near}")
        self.noise_multiplier = noise_multiplier
        self.delta = delta
        self.max_epsilon = max_epsilon
        self.accountant: AccountantName = accountant

    @property
    def norm(self) -> float:
        """What is clipped to."""
        raise NotImplementedError

    def described(self, epsilon: float | None, ended_by_budget: bool) -> dict[str, Any]:
        """What `summary.json` holds under `privacy`.

        Args:
            epsilon: Of all rounds.
            ended_by_budget: Whether the run ended before its last round.
        """
        return {
            "mechanism": type(self).__name__,
            "hides": self.hides,
            "epsilon": epsilon,
            "delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "norm": self.norm,
            "accountant": self.accountant,
            "max_epsilon": self.max_epsilon,
            "ended_by_budget": ended_by_budget,
        }


class CentralPrivacy(Privacy):
    """Hides whether a client took part at all, from whoever sees the models; the server itself sees every update.

    Each round, every client takes part by a coin flip of its own. The server clips each update, as it arrived, to a
    norm, adds them up with equal weights, adds Gaussian noise once, and divides by the expected number of clients.

    Args:
        noise_multiplier: Standard deviation of the noise on the sum, in multiples of `clip_norm`.
        clip_norm: What an update's Euclidean norm, over all tensors together, is cut down to.
        delta: See `Privacy`.
        max_epsilon: See `Privacy`.
        accountant: See `Privacy`.

    Raises:
        ConfigurationError: A value out of range.

    Source: DP-FedAvg, McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", Algorithm 1
    with flat clipping and the estimator of fixed denominator, equation (1); all weights 1.
    """

    hides = "client"
    briefing = (
        "Privacy: the models hide each client; records of clients and training metrics do not. Whoever knows the seed "
        "can undo the noise."
    )

    def __init__(
        self,
        noise_multiplier: float,
        clip_norm: float,
        delta: float,
        max_epsilon: float | None = None,
        accountant: AccountantName = "rdp",
    ) -> None:
        super().__init__(noise_multiplier, delta, max_epsilon, accountant)
        _check(type(self).__name__, "clip_norm", clip_norm, 1e9, ": nothing would be left of an update")
        self.clip_norm = clip_norm

    @property
    def norm(self) -> float:
        """Of an update."""
        return self.clip_norm


class LocalPrivacy(Privacy):
    """Hides whether a client holds an example, from the server too: every local fit is DP-SGD.

    Every step draws each example by a coin flip of its own, clips its gradient to a norm, adds these up, adds Gaussian
    noise, and divides by the expected number of examples.

    Args:
        noise_multiplier: Standard deviation of the noise on the sum, in multiples of `max_grad_norm`.
        max_grad_norm: What the Euclidean norm of an example's gradient is cut down to.
        delta: See `Privacy`.
        max_epsilon: A client that would pass it is drawn no more; see `Privacy`.
        accountant: See `Privacy`.

    Raises:
        ConfigurationError: A value out of range.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1.
    """

    hides = "example"
    briefing = (
        "Privacy: what clients send hides each of their examples, not how many they are. Whoever knows the seed can "
        "undo the noise."
    )

    def __init__(
        self,
        noise_multiplier: float,
        max_grad_norm: float,
        delta: float,
        max_epsilon: float | None = None,
        accountant: AccountantName = "rdp",
    ) -> None:
        super().__init__(noise_multiplier, delta, max_epsilon, accountant)
        _check(type(self).__name__, "max_grad_norm", max_grad_norm, 1e9, ": nothing would be left of a gradient")
        self.max_grad_norm = max_grad_norm

    @property
    def norm(self) -> float:
        """Of an example's gradient."""
        return self.max_grad_norm


def _check(owner: str, name: str, value: Any, most: float, why: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not 0 < value <= most:
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise ConfigurationError(f"{owner} {name} {value!r}: must be above 0{why if value == 0 else limit}")
