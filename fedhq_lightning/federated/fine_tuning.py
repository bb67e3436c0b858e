"""Fine-tuning: after the last round each client trains the model that it got a little further, for itself alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import FitOptions


@dataclass(frozen=True)
class FineTuning:
    """How long clients train their own model after the last round, and at which learning rate.

    Args:
        local_epochs: Passes over a client's data; 1 unless `local_steps` is given.
        local_steps: Optimizer steps, instead of epochs.
        lr_factor: On every learning rate, beside the trainer's `mode_lr`; `round_lr`, which may have come near 0 by
            then, counts for rounds alone.

    Raises:
        ConfigurationError: A value out of range, or epochs and steps.

    Source: Wang et al. 2019, Federated Evaluation of On-device Personalization.
    """

    local_epochs: int | None = None
    local_steps: int | None = None
    lr_factor: float = 1.0

    def __post_init__(self) -> None:
        """Check all."""
        for name in ("local_epochs", "local_steps"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
                raise ConfigurationError(f"fine_tuning: {name} {value!r}: must be a whole number, 1 or more")
        if self.local_epochs is not None and self.local_steps is not None:
            raise ConfigurationError(
                "fine_tuning: local_epochs and local_steps are both given; set one of them to null"
            )
        factor = self.lr_factor
        if isinstance(factor, bool) or not (isinstance(factor, int | float) and 0 < factor < math.inf):
            raise ConfigurationError(f"fine_tuning: lr_factor {factor!r}: must be greater than 0")

    def options(self, of_rounds: FitOptions) -> FitOptions:
        """Length of a fit, with what else is as in the rounds' fits."""
        epochs = 1 if self.local_epochs is None and self.local_steps is None else self.local_epochs
        return replace(of_rounds, local_epochs=epochs, local_steps=self.local_steps)
