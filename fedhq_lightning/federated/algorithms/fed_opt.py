"""FedOpt: a torch optimizer on the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.aggregator import Aggregator, Gathered
from fedhq_lightning.federated.algorithms.fed_avg import FedAvg
from fedhq_lightning.support.text import first_line
from fedhq_lightning.types import StateDict

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
"""Builds an optimizer from parameters; in YAML a torch optimizer by `class_path` and `init_args`."""


class FedOpt(Aggregator):
    """A torch optimizer on the server, with (global - mean) as its gradient; buffers take the mean.

    `FedAvgM`, `FedAdagrad`, `FedAdam` and `FedYogi` are those that papers have named; this takes any other, such as
    `FedOpt(partial(torch.optim.AdamW, lr=0.01))`.

    Args:
        optimizer: Any torch optimizer but for its parameters.

    Raises:
        ConfigurationError: It refuses its arguments.

    Source: Reddi et al. 2021, Algorithm 1.
    """

    def __init__(self, optimizer: OptimizerFactory) -> None:
        try:
            optimizer([nn.Parameter(torch.zeros(1))])
        except ValueError as error:
            raise ConfigurationError(f"{type(self).__name__}: {first_line(error)}") from error
        self.optimizer = optimizer
        self._server: Optimizer | None = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._restored: Mapping[str, Any] | None = None

    @override
    def step(self, current: StateDict, gathered: Gathered) -> StateDict:
        mean = gathered.mean
        names = [name for name in current if name in gathered.parameter_names and name in mean]
        server = self._server or self._build({name: current[name] for name in names})
        for name in names:
            parameter = self._parameters[name]
            parameter.data = current[name].clone()
            parameter.grad = (current[name].float() - mean[name]).to(current[name].dtype)
        server.step()
        following = FedAvg().step(current, gathered)
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
