"""Whether a plan can be carried out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import MODES, ClientId, Plan


def check_plan(plan: Plan, cohort: Sequence[ClientId], allocator: str) -> None:
    """Refuse a plan that cannot be carried out.

    Args:
        plan: As it was proposed.
        cohort: The round's clients.
        allocator: Who proposed it.

    Raises:
        ConfigurationError: It names other clients, or a mode, share of work or learning-rate factor that cannot be.
    """
    if set(plan.modes) != set(cohort):
        raise ConfigurationError(
            f"{allocator} planned {len(plan.modes)} clients for a cohort of {len(cohort)}; "
            "a plan names every client of the cohort and no other"
        )
    for mode in (*plan.modes.values(), *plan.lr_factors):
        if mode not in MODES:
            raise ConfigurationError(f"{allocator} planned mode {mode!r}: must be one of {', '.join(MODES)}")
    for client_id, work in plan.work.items():
        if client_id not in plan.modes or not 0 < work <= 1:
            raise ConfigurationError(
                f"{allocator} planned work {work!r} for client {client_id!r}: must be a client of the cohort, and a "
                "share above 0 and up to 1"
            )
    for mode, factor in plan.lr_factors.items():
        if not 0 < factor < math.inf:
            raise ConfigurationError(
                f"{allocator} planned a learning-rate factor {factor!r} for {mode}: must be above 0"
            )
