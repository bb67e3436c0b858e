"""By what the callback that makes silos is recognised, from rooms below it."""

from __future__ import annotations

import lightning.pytorch as pl

from fedhq_lightning.drop_in.quantized_callback import QuantizedCallback


class SiloCallback(QuantizedCallback):
    """Base of the callback that makes a silo of every process: `fedhq_lightning.callbacks.FederatedAveraging`."""

    def on_epoch_agreed(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called on every silo when they have agreed on what a training epoch logged, before callbacks act on it."""
