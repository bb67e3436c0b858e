"""SCAFFOLD: control variates take the clients' drift off their gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from fedhq_lightning.federated.algorithms.aggregator import ClientEnd, ClientStart, ClientTerm, Gathered
from fedhq_lightning.federated.algorithms.fed_avg import FedAvg
from fedhq_lightning.federated.algorithms.step_length import StepLength
from fedhq_lightning.types import StateDict


class Scaffold(FedAvg):
    """FedAvg whose clients correct every gradient by how theirs differ from everybody's.

    A client keeps a control variate, as large as its trained parameters; the server's goes down with the model, and the
    client's change of its own comes up with the update, both in float32. The correction is made for SGD, also with
    momentum, where gradients count for later steps too; with another optimizer the variates are mean changes of the
    weights over the summed learning rates, and no gradients.

    With weights by examples, as `FedAvg` has them, the server's variate is the mean of all clients' by examples, where
    the paper weighs them alike.

    Source: Karimireddy et al. 2020, Algorithm 1, with option II of equation (4).
    """

    has_client_state = True

    def __init__(self) -> None:
        self._control: StateDict = {}

    @override
    def client_term(self, start: ClientStart) -> ClientTerm:
        return _Correction(start)

    @override
    def beside_down(self, parameters: StateDict) -> StateDict:
        return {name: self._control.get(name, torch.zeros(value.shape)) for name, value in parameters.items()}

    @override
    def beside_up(self, parameters: StateDict) -> StateDict:
        return {name: torch.zeros(value.shape) for name, value in parameters.items()}

    @override
    def step(self, current: StateDict, gathered: Gathered) -> StateDict:
        for name, change in gathered.beside.items():
            before = self._control.get(name, torch.zeros(change.shape))
            self._control[name] = before + gathered.share * change
        return super().step(current, gathered)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"control": dict(self._control)}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._control = dict(state.get("control", {}))


class _Correction(ClientTerm):
    """Adds c - c_i to the gradients, and afterwards finds the new c_i."""

    def __init__(self, start: ClientStart) -> None:
        self._parameters = {
            name: parameter for name, parameter in start.module.named_parameters() if name in start.beside
        }
        self._server = {name: _like(start.beside[name], each) for name, each in self._parameters.items()}
        self._own = {name: _like(start.kept.get(name), each) for name, each in self._parameters.items()}
        self._corrections = {name: self._server[name] - own for name, own in self._own.items()}
        self._starts = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._steps: defaultdict[int, StepLength] = defaultdict(StepLength)
        self._rates = dict.fromkeys(self._parameters, 0.0)

    @override
    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        for position, group in enumerate(optimizer.param_groups):
            rate = float(group["lr"]) * self._steps[position].next(group)
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name is not None and parameter.grad is not None:
                    parameter.grad.add_(self._corrections[name])
                    self._rates[name] += rate

    @override
    @torch.no_grad()
    def finish(self, num_steps: int) -> ClientEnd:
        changes: StateDict = {}
        kept: StateDict = {}
        for name, parameter in self._parameters.items():
            change = torch.zeros_like(self._own[name])
            if self._rates[name]:
                change = (self._starts[name] - parameter.detach()).float() / self._rates[name] - self._server[name]
            changes[name], kept[name] = change.cpu(), (self._own[name] + change).cpu()
        return ClientEnd(beside=changes, kept=kept)


def _like(value: Tensor | None, parameter: Tensor) -> Tensor:
    """A variate in float32 where its parameter is; zeros for none."""
    where = parameter.device
    return torch.zeros(parameter.shape, device=where) if value is None else value.to(where, torch.float32)
