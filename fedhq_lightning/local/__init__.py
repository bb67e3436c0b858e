"""A LightningModule without a Lightning Trainer: local fits, evaluation, prediction, what it logs."""
