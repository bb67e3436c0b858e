"""What one silo has done in a round so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedhq_lightning.silos.batch_examples import examples_in
from fedhq_lightning.silos.silo_rounds import Work


@dataclass
class LocalWork:
    """What this silo has done in the round so far; values that a checkpoint can hold."""

    num_examples: int = 0
    num_examples_with_loss: int = 0
    num_steps: int = 0
    wall_seconds: float = 0.0
    weighted_loss: Any = 0.0
    sensitivity: float | None = None
    allocator_seconds: float = 0.0

    def add(self, batch: Any, outputs: Any, accumulated: int, loaders: Sequence[Any]) -> None:
        """Count one batch.

        Args:
            batch: As the step got it.
            outputs: What Lightning made of the step's output; its loss is divided by the batches to a step.
            accumulated: Those batches.
            loaders: The silo's, in case that the batch does not tell its size.
        """
        size = examples_in(batch, loaders)
        self.num_examples += size
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            self.num_examples_with_loss += size
            # Stays on its device: reading it would wait for the step.
            self.weighted_loss = self.weighted_loss + loss.detach().double() * (size * accumulated)

    def work(self, needs_loss: bool) -> Work:
        """What the other silos are told of it.

        Args:
            needs_loss: Whether no step is taken without a loss, as in automatic optimization.
        """
        loss = float(self.weighted_loss) / self.num_examples_with_loss if self.num_examples_with_loss else None
        return Work(
            self.num_examples,
            self.num_steps,
            self.wall_seconds,
            loss,
            self.sensitivity,
            self.allocator_seconds,
            is_idle=not self.num_examples or (needs_loss and loss is None),
        )
