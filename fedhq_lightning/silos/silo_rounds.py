"""The end of a round among silos: what each one sends, and the global model that every one of them computes from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedhq_lightning.federated.algorithms.aggregator import Aggregator
from fedhq_lightning.federated.server import Aggregated, Server, ServerRound
from fedhq_lightning.federated.update_checks import Norms
from fedhq_lightning.federated.wire import Link, Uplink
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.risk.update_sketch import Sketcher
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.tensors import same_values
from fedhq_lightning.types import ClientId, StateDict


@dataclass(frozen=True)
class Work:
    """What one silo did in a round; travels as JSON beside its payload.

    Attributes:
        num_examples: Examples seen, its weight in the average.
        num_steps: Optimizer steps taken.
        wall_seconds: Wall seconds from the start of the round to the exchange.
        loss: Mean of what `training_step` returned, weighted by examples; None where it returned none.
        sensitivity: What the allocator wanted measured on the model received; None where it wanted nothing.
        allocator_seconds: Wall seconds of planning.
        is_idle: Whether it trained on nothing, so that it sends nothing and counts nothing.
        changed: Frozen parameters that hooks changed, as the average of another network's weights.
    """

    num_examples: int
    num_steps: int
    wall_seconds: float
    loss: float | None = None
    sensitivity: float | None = None
    allocator_seconds: float = 0.0
    is_idle: bool = False
    changed: Sequence[str] = ()


@dataclass(frozen=True)
class Limits:
    """What updates of silos are measured by, see `federated.server`.

    Attributes:
        max_norm_ratio: How many times the median norm one may have; None for any.
        most_examples: That each silo can have seen in a round, by rank.
    """

    max_norm_ratio: float | None
    most_examples: Sequence[int]

    @classmethod
    def of(cls, max_norm_ratio: float | None, examples: Sequence[int], num_epochs: int) -> Limits:
        """From what the silos told before round 1.

        Args:
            max_norm_ratio: See there.
            examples: Of an epoch, by rank, as a batch and their number tell it: so there may be twice as many.
            num_epochs: To a round.
        """
        return cls(max_norm_ratio, [2 * num_epochs * each for each in examples])


class SiloRound:
    """One round from the model that every silo begins it with.

    Args:
        round_number: From 1.
        received: The global model, see `snapshot`.
        frozen: Parameters that were not trained when the round began.
        grids: Grid of every quantized weight by its name in the state; empty without a scheme.
        uplink: What is sent.
    """

    def __init__(
        self,
        round_number: int,
        received: StateDict,
        frozen: frozenset[str],
        grids: Mapping[str, LayerScheme],
        uplink: Uplink,
    ) -> None:
        self.number = round_number
        self.received = received
        self.frozen = frozen
        self._grids = grids
        self._uplink: Uplink = uplink
        self._changed = frozenset[str]()

    def changed(self, module: nn.Module) -> list[str]:
        """Frozen parameters that are not as received.

        Args:
            module: The silo's, with plain layers.
        """
        state = module.state_dict()
        names = sorted(name for name in self._frozen(module) if name in self.received)
        return [name for name in names if not same_values(state[name].detach().cpu(), self.received[name])]

    def agree(self, work: Sequence[Work]) -> None:
        """Settle what travels: also what is frozen, but was changed on a silo.

        Args:
            work: What each silo did, by rank.
        """
        self._changed = frozenset(name for each in work if not each.is_idle for name in each.changed)

    def encode(self, module: nn.Module, rank: int) -> bytes:
        """A silo's payload: its model, rounded to the grids, or what it changed.

        Args:
            module: The silo's, with plain layers.
            rank: The silo.
        """
        return self._link(module).up(module.state_dict(), self.received, self.number, rank)

    def aggregate(
        self,
        module: nn.Module,
        payloads: Sequence[bytes],
        work: Sequence[Work],
        aggregator: Aggregator,
        sketcher: Sketcher | None = None,
        limits: Limits | None = None,
        usual_norms: Sequence[float] | None = None,
        unseal: Callable[[ClientId, bytes], bytes] | None = None,
    ) -> Aggregated:
        """Take the server's step, which every silo takes alike.

        Args:
            module: As in `encode`; only names are read.
            payloads: One a silo, by rank; those of idle ones are not looked at.
            work: What each silo did, by rank.
            aggregator: Makes the next global model.
            sketcher: Where the directions of updates are wanted.
            limits: What updates are measured by; None for nothing.
            usual_norms: What the round before found.
            unseal: Takes the seals off the payloads; None where they have none.
        """
        names, alone = trained_names(module, self._frozen(module)), Processes(None)  # it has everybody's payloads
        server = Server(self._link(module), aggregator, names, alone, sketcher=sketcher, unseal=unseal)
        most: Sequence[int | None] = [None] * len(work)
        if limits is not None:
            most = limits.most_examples
            server = replace(server, max_norm_ratio=limits.max_norm_ratio, typical_examples=median(most) / 2)
        usual = None if usual_norms is None else Norms(*usual_norms)
        at_server = ServerRound(server, self.number, self.received, self.received, usual_norms=usual)
        for rank, payload in enumerate(payloads):
            if work[rank].is_idle:
                continue
            at_server.receive(rank, payload, work[rank].num_examples, most[rank])
        return at_server.close()

    def _link(self, module: nn.Module) -> Link:
        return Link(self.received, self._grids, self._uplink, "fp32", self._frozen(module) - self._changed)

    def _frozen(self, module: nn.Module) -> frozenset[str]:
        """Parameters that nobody trained: what a callback thaws or freezes within the round was trained."""
        return self.frozen & frozen_names(module)


def snapshot(module: nn.Module) -> StateDict:
    """A module's state on the CPU; tensors that it holds under several names stay one tensor."""
    copies: dict[Any, Tensor] = {}
    state: StateDict = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            key = value.data_ptr(), value.shape, value.stride(), value.dtype
            if not value.numel() or key not in copies:
                copies[key] = value.detach().to("cpu", copy=True)
            state[name] = copies[key]
    return state


def put(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into a module, in place, so that optimizers go on with its Parameters."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if isinstance(value, Tensor) and name in state:
                value.copy_(state[name])


def frozen_names(module: nn.Module) -> frozenset[str]:
    """Parameters without gradients, under all their names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in parameters if not parameter.requires_grad)


def trained_names(module: nn.Module, frozen: frozenset[str]) -> frozenset[str]:
    """The other parameters, likewise."""
    return frozenset(name for name, _ in module.named_parameters(remove_duplicate=False)) - frozen


def with_ties(pl_module: nn.Module, state: StateDict) -> StateDict:
    """A loaded state in which tensors that the module holds under several names are one tensor again."""
    held = snapshot(pl_module)
    first: dict[int, str] = {}
    return {name: state[first.setdefault(id(value), name)] for name, value in held.items()}


def forget_what_is_not_finite(optimizers: Iterable[Optimizer]) -> None:
    """Let a silo that was quarantined train on: an optimizer's average of values that are not finite never heals."""
    for optimizer in optimizers:
        tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        if not all(bool(value.isfinite().all()) for value in tensors if value.is_floating_point()):
            optimizer.state.clear()
