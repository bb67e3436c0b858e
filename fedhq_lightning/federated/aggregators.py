"""From the cohort's mean to the next global model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.text import first_line
from fedhq_lightning.types import StateDict

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
"""Builds an optimizer from parameters; in YAML a torch optimizer by `class_path` and `init_args`."""


__all__ = ["Aggregator", "FedAvg", "FedOpt", "FedProx"]


class Aggregator(ABC):
    """The server's step. The mean itself is taken exactly by `ExactMean`, weighted by examples."""

    @abstractmethod
    def step(self, current: StateDict, mean: StateDict, parameter_names: frozenset[str]) -> StateDict:
        """The next global model.

        Args:
            current: Global state of this round, float tensors and others.
            mean: Mean of what the clients sent: float tensors, some or all of those of `current`. The others stay.
            parameter_names: Which names are trained parameters; the others are buffers.

        Returns:
            A new state with the names, shapes and dtypes of `current`.
        """

    def client_term(self, module: nn.Module) -> Callable[[], None] | None:
        """What a client adds to its gradients, given its module at the round's global weights; None for nothing."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave; from nothing at the start of a run, when `state` is empty."""


class FedAvg(Aggregator):
    """The mean of the clients' models, weighted by examples.

    Source: McMahan et al. 2017, Algorithm 1.
    """

    @override
    def step(self, current: StateDict, mean: StateDict, parameter_names: frozenset[str]) -> StateDict:
        return {name: mean[name].to(value.dtype) if name in mean else value for name, value in current.items()}


class FedProx(FedAvg):
    """FedAvg with a proximal term in every client's loss, mu/2 times the squared distance to the global model.

    Args:
        mu: Weight of the term, >= 0.

    Raises:
        ConfigurationError: mu is negative.

    Source: Li et al. 2020, Algorithm 2.
    """

    def __init__(self, mu: float = 0.01) -> None:
        if mu < 0:
            raise ConfigurationError(f"FedProx mu {mu}: must be >= 0; 0 is FedAvg")
        self.mu = mu

    @override
    def client_term(self, module: nn.Module) -> Callable[[], None] | None:
        start = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]

        @torch.no_grad()
        def pull_back() -> None:
            for parameter, anchor in start:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - anchor, alpha=self.mu)

        return pull_back


class FedOpt(Aggregator):
    """A torch optimizer on the server, with (global - mean) as its gradient; buffers take the mean.

    FedAvgM is `FedOpt(partial(torch.optim.SGD, lr=1.0, momentum=0.9))`, FedAdam is
    `FedOpt(partial(torch.optim.Adam, lr=0.01))`.

    Args:
        optimizer: Any torch optimizer but for its parameters.

    Source: Reddi et al. 2021, Algorithm 2; Hsu et al. 2019 for FedAvgM.
    """

    def __init__(self, optimizer: OptimizerFactory) -> None:
        self.optimizer = optimizer
        self._server: Optimizer | None = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._restored: Mapping[str, Any] | None = None

    @override
    def step(self, current: StateDict, mean: StateDict, parameter_names: frozenset[str]) -> StateDict:
        names = [name for name in current if name in parameter_names and name in mean]
        server = self._server or self._build({name: current[name] for name in names})
        for name in names:
            parameter = self._parameters[name]
            parameter.data = current[name].clone()
            parameter.grad = (current[name].float() - mean[name]).to(current[name].dtype)
        server.step()
        following = FedAvg().step(current, mean, parameter_names)
        return following | {name: self._parameters[name].detach().clone() for name in names}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._server.state_dict()} if self._server is not None else {}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restored = state.get("optimizer")
        if restored is not None and not {"state", "param_groups"} <= set(restored):
            raise ValueError("`optimizer` is no state of an optimizer")
        self._server, self._restored = None, restored

    def _build(self, values: Mapping[str, Tensor]) -> Optimizer:
        self._parameters = {name: nn.Parameter(value.clone()) for name, value in values.items()}
        self._server = self.optimizer(list(self._parameters.values()))
        if self._restored is not None:
            try:
                self._server.load_state_dict(dict(self._restored))
            except Exception as error:  # torch has many for what is not its own
                raise ConfigurationError(
                    f"FedOpt: what the checkpoint holds is no state of this optimizer ({first_line(error)}); resume "
                    "with the one that the run began with"
                ) from error
            self._restored = None
        return self._server
