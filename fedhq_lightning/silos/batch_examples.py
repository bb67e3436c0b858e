"""How many examples a batch holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size


def examples_in(batch: Any, loaders: Sequence[Any] = ()) -> int:
    """Examples in a batch; where its kind does not tell, the loader's batch size, else 1."""
    try:
        return extract_batch_size(batch)
    except (MisconfigurationException, RecursionError):
        return int(next((each.batch_size for each in loaders if getattr(each, "batch_size", None)), 1))
