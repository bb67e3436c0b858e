"""What a federated algorithm is made of: a step at the server, and a term at each client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fedhq_lightning.types import StateDict


@dataclass(frozen=True)
class Gathered:
    """What the updates of a round came to, the same on every process.

    Attributes:
        mean: Exact mean of the clients' models, weighted by examples: float tensors, some or all of the global model's.
        parameter_names: Which names are trained parameters; the others are buffers.
        beside: Mean of what the clients sent beside their models, weighted alike, by the names of `beside_up`.
        share: Examples of the clients in the mean over those of all clients, in (0, 1].
    """

    mean: StateDict
    parameter_names: frozenset[str]
    beside: StateDict = field(default_factory=dict)
    share: float = 1.0


@dataclass(frozen=True)
class ClientStart:
    """What a client's local fit begins with.

    Attributes:
        module: At the weights that it received.
        beside: What it received beside them, by the names of `beside_down`.
        kept: What it kept of the last round in which it took part; empty in its first.
        own: Names of tensors that are the client's own: the server's model says nothing about them.
    """

    module: nn.Module
    beside: StateDict = field(default_factory=dict)
    kept: StateDict = field(default_factory=dict)
    own: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ClientEnd:
    """What is left of a local fit beside the model.

    Attributes:
        beside: What the client sends beside the model, by the names, and in the shapes, of `beside_up`.
        kept: What it keeps until the next round in which it takes part.
        change_factor: Of how the fit changed the parameters, so much is sent, a share or a multiple.
    """

    beside: StateDict = field(default_factory=dict)
    kept: StateDict = field(default_factory=dict)
    change_factor: float = 1.0


class ClientTerm:
    """What an algorithm does in one local fit; made anew for each. Here: nothing."""

    def before_step(self, optimizer: Optimizer) -> None:
        """Change gradients, once an optimizer step, after accumulation and before clipping. Weights stay."""

    def finish(self, num_steps: int) -> ClientEnd:
        """After the last of `num_steps` optimizer steps, at least one; the module holds the local model."""
        return ClientEnd()


class Aggregator(ABC):
    """A federated algorithm. The mean itself is taken exactly by `ExactMean`, weighted by examples.

    Attributes:
        has_client_state: Whether clients keep anything from round to round.
        sends_scaled_changes: Whether terms end with a `change_factor`: the rounding of whole models would lose it.
    """

    has_client_state: bool = False
    sends_scaled_changes: bool = False

    @abstractmethod
    def step(self, current: StateDict, gathered: Gathered) -> StateDict:
        """The next global model.

        Args:
            current: Global state of this round, float tensors and others.
            gathered: What came of the clients. What its mean lacks stays as it is.

        Returns:
            A new state with the names, shapes and dtypes of `current`.
        """

    def client_term(self, start: ClientStart) -> ClientTerm | None:
        """What a client does beside its own training, given what it begins with; None for nothing."""
        return None

    def beside_down(self, parameters: StateDict) -> StateDict:
        """What goes down to clients beside the model, as it is now.

        Args:
            parameters: The global model's trained ones.

        Returns:
            float32 tensors on the CPU; names and shapes are the same in every round.
        """
        return {}

    def beside_up(self, parameters: StateDict) -> StateDict:
        """Tensors with the names and shapes of what clients send beside their models, float32."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave; from nothing at the start of a run, when `state` is empty."""
