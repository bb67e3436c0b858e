"""The words that every part shares: client ids, modes, plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypeVar, get_args

from annotated_types import Interval

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

ClientId: TypeAlias = int | str
"""One data holder; stable over the run."""

Mode: TypeAlias = Literal["fp", "ptq", "qat"]
"""How one client trains in one round."""

Count: TypeAlias = Annotated[int, Interval(ge=0, le=2**63 - 1)]
"""How many; of what is read from files too."""

Seconds: TypeAlias = Annotated[float, Interval(ge=0, le=1e15)]
"""A time that was measured or modelled: a number, and no more than 30 million years."""

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
        work: Share of its local steps that a client takes, above 0 and up to 1, rounded down to whole steps, one at
            least. Clients that are not named take all.
        lr_factors: Factor on every learning rate of the clients in a mode; 1 for modes that are not named.
    """

    modes: Mapping[ClientId, Mode]
    reason: str = ""
    logged: Mapping[str, float] = field(default_factory=dict)
    work: Mapping[ClientId, float] = field(default_factory=dict)
    lr_factors: Mapping[Mode, float] = field(default_factory=dict)

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

    def num_steps(self, num_batches: int, work: float = 1.0) -> int:
        """Optimizer steps of a local fit, or of a share of it.

        Args:
            num_batches: Of one epoch.
            work: The share; steps are rounded down, but for the last bits of a float, to one at least.
        """
        per_epoch = -(-num_batches // self.accumulate_grad_batches)
        whole = self.local_steps or per_epoch * (self.local_epochs or 0)
        return whole if work >= 1 else max(1, int(whole * work + 1e-9))
