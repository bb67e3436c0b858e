"""How a copy of a module sees the Trainer that trains the module."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection


class TrainerView:
    """A Trainer as the converted copy sees it: the real one, but with loggers and logged values of its own.

    Args:
        trainer: The real one.
        module: The copy.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._trainer = trainer
        self.lightning_module = self.model = module
        self.logger = DummyLogger()
        self.loggers = [self.logger]
        self._results = _ResultCollection(training=False)
        self._logger_connector = SimpleNamespace(should_reset_tensors=lambda hook: False, _current_fx=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)
