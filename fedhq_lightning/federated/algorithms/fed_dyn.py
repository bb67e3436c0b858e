"""FedDyn: every client's loss is bent until its optimum is everybody's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.aggregator import Aggregator, ClientEnd, ClientStart, ClientTerm, Gathered
from fedhq_lightning.federated.algorithms.fed_avg import FedAvg
from fedhq_lightning.types import StateDict


class FedDyn(Aggregator):
    """A client keeps the gradient that its loss had where it ended, and takes it off in its next fit.

    It is as large as the trained parameters; nothing travels beside the model. With weights by examples, as `FedAvg`
    has them, the server's `h` is a mean by examples, where the paper weighs clients alike.

    Args:
        alpha: Weight of the proximal term, > 0.

    Raises:
        ConfigurationError: alpha is not above 0.

    Source: Acar et al. 2021, Algorithm 1, with the clients' objective of equation (1).
    """

    has_client_state = True

    def __init__(self, alpha: float = 0.01) -> None:
        if not 0 < alpha < math.inf:
            raise ConfigurationError(f"FedDyn alpha {alpha}: must be above 0; FedAvg is without it")
        self.alpha = alpha
        self._h: StateDict = {}

    @override
    def client_term(self, start: ClientStart) -> ClientTerm:
        return _DynamicRegularizer(start, self.alpha)

    @override
    def step(self, current: StateDict, gathered: Gathered) -> StateDict:
        mean = gathered.mean
        following = FedAvg().step(current, gathered)
        for name in gathered.parameter_names & mean.keys():
            start = current[name].float()
            before = self._h.get(name, torch.zeros_like(start))
            self._h[name] = before - self.alpha * gathered.share * (mean[name] - start)
            following[name] = (mean[name] - self._h[name] / self.alpha).to(current[name].dtype)
        return following

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"h": dict(self._h)}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._h = dict(state.get("h", {}))


class _DynamicRegularizer(ClientTerm):
    """Adds alpha * (y - x) - g_i to the gradients, and afterwards finds the new g_i."""

    def __init__(self, start: ClientStart, alpha: float) -> None:
        self._alpha = alpha
        trained = {name: each for name, each in start.module.named_parameters() if each.requires_grad}
        self._parameters = {name: each for name, each in trained.items() if name not in start.own}
        self._starts = {name: each.detach().clone() for name, each in self._parameters.items()}
        self._gradients = {
            name: torch.zeros_like(each, dtype=torch.float32)
            if name not in start.kept
            else start.kept[name].to(each.device, torch.float32)
            for name, each in self._starts.items()
        }

    @override
    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - self._starts[name], alpha=self._alpha).sub_(self._gradients[name])

    @override
    @torch.no_grad()
    def finish(self, num_steps: int) -> ClientEnd:
        kept = {
            name: (self._gradients[name] - self._alpha * (parameter.detach() - self._starts[name]).float()).cpu()
            for name, parameter in self._parameters.items()
        }
        return ClientEnd(kept=kept)
