"""The one place that imports Opacus: when it is first needed, and with the root logger left as it was.

Its import calls `logging.basicConfig`, after which whatever any library logs would reach the terminal.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from fedhq_lightning.support.extras import check_installed


def from_opacus(module: str) -> Any:
    """A module of Opacus.

    Args:
        module: Its name behind `opacus.`.

    Raises:
        ConfigurationError: Opacus is not installed.
    """
    check_installed("trainer.privacy", "opacus")
    with _root_logger_kept():
        return import_module(f"opacus.{module}")


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
