"""The server's optimizers of Reddi et al. 2021 that torch has not: their Adam, without bias correction, and Yogi."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError


class ServerMoments(Optimizer):
    """Steps of lr * m / (sqrt(v) + tau), m a running mean of gradients and v one of their squares, from tau^2.

    Args:
        params: As of every torch optimizer.
        rule: How v moves: "adam" towards the newest square by a share of the distance, "yogi" by a share of the square.
        lr: Learning rate, > 0.
        betas: Of m and v, in [0, 1).
        tau: Above 0.

    Raises:
        ConfigurationError: A value out of its range.

    Source: Reddi et al. 2021, Algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: Literal["adam", "yogi"],
        lr: float,
        betas: tuple[float, float],
        tau: float,
    ) -> None:
        if not (lr > 0 and tau > 0 and all(0 <= beta < 1 for beta in betas)):
            raise ConfigurationError(
                f"lr {lr}, betas {betas}, tau {tau} of the server: lr and tau must be above 0, betas in [0, 1)"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "tau": tau, "rule": rule})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch overloads it
        """One step; no closure is called."""
        for group in self.param_groups:
            beta_1, beta_2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state["m"] = torch.zeros_like(parameter)
                    state["v"] = torch.full_like(parameter, group["tau"] ** 2)
                square = gradient.square()
                state["m"].lerp_(gradient, 1 - beta_1)
                away = state["v"] - square
                if group["rule"] == "yogi":
                    away = square * away.sign()
                state["v"].sub_(away, alpha=1 - beta_2)
                parameter.addcdiv_(state["m"], state["v"].sqrt() + group["tau"], value=-group["lr"])
