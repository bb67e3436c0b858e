"""Whole runs here are quick ones too."""

from ..trainer.conftest import quick

__all__ = ["quick"]
