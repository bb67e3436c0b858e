"""An allocator that asks every client for everything, by a name that a recipe can give."""

from typing import Any

from fedhq_lightning.allocation import FixedAllocator
from fedhq_lightning.risk import SensitivityMeasure


class Curious(FixedAllocator):
    """A fixed allocation; what it learns of clients changes nothing.

    Args:
        allocation: As for FixedAllocator.
        sensitivity: What clients measure.
        updates: Whether the directions of updates are found.
    """

    def __init__(
        self, allocation: Any = 0.5, sensitivity: SensitivityMeasure | None = "loss", updates: bool = True
    ) -> None:
        super().__init__(allocation)
        self.wanted_sensitivity = sensitivity
        self.wants_update_divergence = updates
