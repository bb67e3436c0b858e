"""Parts of a running Trainer that Lightning sets without declaring them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl


class AveragesResults:
    """Base of a strategy whose processes agree on what evaluation logs by another rule than DDP's."""

    def average(self, results: Mapping[str, Any]) -> None:
        """Average over the processes what was logged on an epoch.

        Args:
            results: Lightning's collection of the epoch.
        """
        raise NotImplementedError


def callbacks_of(trainer: pl.Trainer) -> list[Any]:
    """The callbacks, in the order in which they are called."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return callbacks


def is_rehearsal(trainer: pl.Trainer) -> bool:
    """Whether `fast_dev_run` is set, so that nothing is to be written."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by a connector


def training_loaders(trainer: pl.Trainer) -> list[Any]:
    """The training loaders, once they are set up."""
    loader = trainer.fit_loop._combined_loader
    return [] if loader is None else list(loader.flattened)
