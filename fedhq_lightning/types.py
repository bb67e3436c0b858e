"""The words that every part shares: client ids, modes, plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, get_args

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

ClientId: TypeAlias = int | str
"""One data holder; stable over the run."""

Mode: TypeAlias = Literal["fp", "ptq", "qat"]
"""How one client trains in one round."""

StateDict: TypeAlias = "dict[str, Tensor]"
"""What `module.state_dict()` holds: name to tensor."""

MonitorMode: TypeAlias = Literal["min", "max"]
"""Whether a smaller or a larger monitored value is better."""

AnyModule = TypeVar("AnyModule", bound="Module")
"""A module goes in, and one of the same class comes out."""

MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Plan:
    """Who trains how in one round.

    Attributes:
        modes: Mode of every client of the cohort.
        reason: One sentence for the log, or empty.
        logged: Numbers to log with the round, such as the boundary.
    """

    modes: Mapping[ClientId, Mode]
    reason: str = ""
    logged: Mapping[str, float] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Clients per mode, every mode named."""
        return {mode: sum(m == mode for m in self.modes.values()) for mode in MODES}


@dataclass(frozen=True)
class FitOptions:
    """What one local fit does, the same for every client.

    Attributes:
        local_epochs: Passes over the client's data, or None where `local_steps` counts.
        local_steps: Optimizer steps; the client's data are repeated as needed.
        gradient_clip_val: Norm to clip gradients to, or None.
        accumulate_grad_batches: Batches to one optimizer step.
    """

    local_epochs: int | None = 1
    local_steps: int | None = None
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
