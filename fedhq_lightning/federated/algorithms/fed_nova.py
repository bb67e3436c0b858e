"""FedNova: clients' changes are normalized by how many steps they took, so that longer fits do not weigh more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from typing_extensions import override

from fedhq_lightning.federated.algorithms.aggregator import Aggregator, ClientEnd, ClientStart, ClientTerm, Gathered
from fedhq_lightning.federated.algorithms.fed_avg import FedAvg
from fedhq_lightning.federated.algorithms.step_length import StepLength
from fedhq_lightning.types import StateDict

_LENGTH = "length"


class FedNova(Aggregator):
    """Averages changes per step of the clients' fits, and takes as many steps as the clients took on average.

    It matters where fits differ in length: by clients' sizes, or by a plan's shares of work. The length of a fit counts
    momentum, of the optimizer's first group of parameters: a gradient is added to all later steps, and counts for them.

    A client sends its change divided by its own length and multiplied by the mean length of the round before, which
    came down with the model, so that numbers keep their size on the way; the server puts this round's in its place.

    Source: Wang et al. 2020, equations (3) and (6) with weights by examples, and tau_eff = sum of p_i * |a_i|.
    """

    sends_scaled_changes = True

    def __init__(self) -> None:
        self._last_length = 1.0

    @override
    def client_term(self, start: ClientStart) -> ClientTerm:
        return _FitLength(float(start.beside[_LENGTH]))

    @override
    def beside_down(self, parameters: StateDict) -> StateDict:
        return {_LENGTH: torch.tensor(self._last_length)}

    @override
    def beside_up(self, parameters: StateDict) -> StateDict:
        return {_LENGTH: torch.zeros(())}

    @override
    def step(self, current: StateDict, gathered: Gathered) -> StateDict:
        mean, length = gathered.mean, float(gathered.beside[_LENGTH])
        following = FedAvg().step(current, gathered)
        for name in gathered.parameter_names & mean.keys():
            start = current[name].float()
            following[name] = (start + (length / self._last_length) * (mean[name] - start)).to(current[name].dtype)
        self._last_length = length
        return following

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"last_length": self._last_length}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._last_length = state.get("last_length", 1.0)


class _FitLength(ClientTerm):
    """Finds the length of a fit, |a_i|, in learning rates."""

    def __init__(self, sent_length: float) -> None:
        self._sent_length = sent_length
        self._steps = StepLength()
        self._length = 0.0

    @override
    def before_step(self, optimizer: Optimizer) -> None:
        self._length += self._steps.next(optimizer.param_groups[0])

    @override
    def finish(self, num_steps: int) -> ClientEnd:
        factor = self._sent_length / self._length if self._length else 1.0
        return ClientEnd(beside={_LENGTH: torch.tensor(self._length)}, change_factor=factor)
