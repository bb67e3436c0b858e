"""Which layers are each client's own: they stay on the client, and the rest is learned by all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.local.batch_statistics import tracked_layers
from fedhq_lightning.types import StateDict

BATCH_NORM = "batch_norm"
"""In place of a pattern: all BatchNorm layers, with their statistics."""
_MOST_NAMED = 8


@dataclass(frozen=True)
class PersonalLayers:
    """Layers of which every client has its own. They neither go up nor down; a client begins with the initial model's.

    Args:
        names: One pattern or several (as in fnmatch: `*`, `?`, `[...]`) of the names of layers, of modules that hold
            them, or of tensors: "head" and "head.*" are both all of `head`. "batch_norm" is all BatchNorm layers.
        first: Share of a client's local steps, the first, in which the personal layers alone are trained; in the rest
            the others alone are. None trains all at once.

    Raises:
        ConfigurationError: No pattern, or a share that is not between 0 and 1.

    Source: Arivazhagan et al. 2019 (FedPer); Collins et al. 2021, Algorithm 1 (FedRep), with `first`; Li et al. 2021
    (FedBN), with "batch_norm".
    """

    names: Sequence[str] | str
    first: float | None = None

    def __post_init__(self) -> None:
        """Check what needs no module."""
        if not self.patterns or not all(isinstance(each, str) and each for each in self.patterns):
            raise ConfigurationError(
                f"personal_layers {self.names!r}: must be patterns of names, such as 'head.*', or '{BATCH_NORM}'; null "
                "for none"
            )
        first = self.first
        if first is not None and not (isinstance(first, float) and 0 < first < 1):
            raise ConfigurationError(
                f"personal_layers: first {first!r}: must be a share of the local steps above 0 and below 1; null "
                "trains all layers at once"
            )

    @classmethod
    def of(cls, given: PersonalLayers | Sequence[str] | str | None) -> PersonalLayers | None:
        """From what a trainer is given; None where every layer is everybody's."""
        return cls(given) if isinstance(given, str | Sequence) else given

    @property
    def patterns(self) -> tuple[str, ...]:
        """Each by itself."""
        return (self.names,) if isinstance(self.names, str) else tuple(self.names)

    def found_in(self, module: nn.Module, state: Mapping[str, Tensor], fixed: Set[str]) -> OwnLayers:
        """What of a module's state is each client's own.

        A tensor that goes by several names is so by all of them if it is by one.

        Args:
            module: The user's.
            state: Of the module, its tied tensors in one place of memory.
            fixed: Names of what no client trains, and which therefore is nobody's own.

        Raises:
            ConfigurationError: A pattern that matches nothing, or nothing that is trained; nothing is left to share.
        """
        named: set[str] = set()
        for pattern in self.patterns:
            named |= self._matched(pattern, module, state)
        places = {_place(state[name]) for name in named if state[name].numel()}
        named |= {name for name, value in state.items() if value.numel() and _place(value) in places}
        own = frozenset(name for name in named if name not in fixed and state[name].isfinite().all())
        if not own:
            raise ConfigurationError(
                f"personal_layers {self.names!r}: what they name is frozen, so no client could have its own; thaw it, "
                "or name layers that are trained"
            )
        if not any(value.is_floating_point() for name, value in state.items() if name not in own | fixed):
            raise ConfigurationError(
                f"personal_layers {self.names!r}: they are the whole model, so clients would share nothing; name fewer"
            )
        return OwnLayers(own, self.first)

    def _matched(self, pattern: str, module: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
        if pattern == BATCH_NORM:
            layers = [name for names in tracked_layers(module).values() for name in names]
            found = {name for name in state if name.rpartition(".")[0] in layers}
            if not found:
                raise ConfigurationError(
                    f"personal_layers '{BATCH_NORM}': {type(module).__name__} has no BatchNorm layer that keeps "
                    "statistics; name layers, such as 'head.*'"
                )
            return found
        found = {name for name in state if any(fnmatchcase(each, pattern) for each in _within(name))}
        if not found:
            layers = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
            shown = ", ".join(layers[:_MOST_NAMED]) + (", ..." if len(layers) > _MOST_NAMED else "")
            near = nearest(pattern, dict.fromkeys(each for name in state for each in _within(name)))
            raise ConfigurationError(
                f"personal_layers {pattern!r}: matches no layer and no tensor of {type(module).__name__}; its layers "
                f"are {shown}, and '{BATCH_NORM}' is all BatchNorm layers{near}"
            )
        return found


@dataclass(frozen=True)
class OwnLayers:
    """What of a model is each client's own; by default nothing.

    Attributes:
        names: Of the tensors, in the model's state.
        first: As in `PersonalLayers`.
    """

    names: frozenset[str] = frozenset()
    first: float | None = None

    def of(self, state: Mapping[str, Tensor]) -> StateDict:
        """A client's own, of its model, on the CPU."""
        return {name: value.detach().cpu() for name, value in state.items() if name in self.names}

    def turns(self, module: nn.Module, num_steps: int) -> InTurn | None:
        """What lets the layers of a module train in turn, in a fit of so many steps; None where all train at once."""
        return None if self.first is None else InTurn(module, self.names, round(self.first * num_steps))


class InTurn:
    """Takes gradients from the layers whose turn it is not: first the personal ones train, then the others.

    Args:
        module: That trains.
        own: Names of the tensors that are the client's own.
        num_first: Optimizer steps in which those train.
    """

    def __init__(self, module: nn.Module, own: Set[str], num_first: int) -> None:
        self._parameters = [(name in own, parameter) for name, parameter in module.named_parameters()]
        self._left = num_first

    def before_step(self, optimizer: Optimizer) -> None:
        """Once an optimizer step, before clipping."""
        for is_own, parameter in self._parameters:
            if is_own != (self._left > 0):
                parameter.grad = None
        self._left -= 1


def check_monitor(monitor: str | None, validation_names: Sequence[str]) -> None:
    """Refuse to watch what the server would find, which has no whole model where layers are the clients' own.

    Args:
        monitor: As the trainer was given it.
        validation_names: What `validation_step` logs.

    Raises:
        ConfigurationError: One of these is to be watched.
    """
    if monitor in validation_names:
        raise ConfigurationError(
            f"trainer.monitor {monitor!r}: with personal_layers the server has no whole model to validate; monitor "
            f"what clients find with their own, such as 'clients/{monitor}/mean', or leave monitor out"
        )


def _within(name: str) -> list[str]:
    """A tensor's name, and those of the modules that it is in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _place(value: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    return value.data_ptr(), value.shape, value.dtype
