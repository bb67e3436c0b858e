"""What was written to `model/`, as the summary and the folder's README tell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Deployment:
    """What was written.

    Attributes:
        export: "model.pt2", "packed", or "float32" for a model without a scheme.
        reason: Why there is no `model.pt2`, or empty.
        metrics: What the module logs with the written program in place of its `forward`; empty where it was not used.
        program: The program as it was read back; None where there is none.
        example_args: Arguments with which the program was checked, on the CPU; None where there is no program.
        packed_bytes: What the deployed tensors take when each weight has its scheme's bits; None without a scheme.
    """

    export: str
    reason: str
    metrics: dict[str, float]
    program: nn.Module | None = field(default=None, compare=False, repr=False)
    example_args: tuple[Any, ...] | None = field(default=None, compare=False, repr=False)
    packed_bytes: int | None = None
