"""FedProx: clients are held back to where they began."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.aggregator import ClientStart, ClientTerm
from fedhq_lightning.federated.algorithms.fed_avg import FedAvg
from fedhq_lightning.types import StateDict


class FedProx(FedAvg):
    """FedAvg with a proximal term in every client's loss, mu/2 times the squared distance to the global model.

    Args:
        mu: Weight of the term, >= 0.

    Raises:
        ConfigurationError: mu is negative.

    Source: Li et al. 2020, Algorithm 2 and equation (2).
    """

    def __init__(self, mu: float = 0.01) -> None:
        if mu < 0:
            raise ConfigurationError(f"FedProx mu {mu}: must be >= 0; 0 is FedAvg")
        self.mu = mu

    @override
    def client_term(self, start: ClientStart) -> ClientTerm:
        return ProximalTerm(start.module, self.mu, start.own)


class ProximalTerm(ClientTerm):
    """The gradient of mu/2 times the squared distance to an anchor.

    Args:
        module: That trains.
        mu: Weight of the distance.
        own: Names of tensors that are held to nothing.
        anchors: By name; None is where the module is now.
    """

    def __init__(
        self, module: nn.Module, mu: float, own: frozenset[str] = frozenset(), anchors: StateDict | None = None
    ) -> None:
        held = [(name, each) for name, each in module.named_parameters() if name not in own]
        self._anchors = [
            (each, each.detach().clone() if anchors is None else anchors[name].to(each.device, each.dtype))
            for name, each in held
            if anchors is None or name in anchors
        ]
        self._mu = mu

    @override
    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        for parameter, anchor in self._anchors:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - anchor, alpha=self._mu)
