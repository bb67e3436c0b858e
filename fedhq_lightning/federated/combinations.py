"""Settings that cannot be together, whatever module, data and fleet are: one row for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.settings import RunSettings


class _Excluded(NamedTuple):
    """Two settings, in words, whether a run has both, and what to say of it."""

    one: str
    other: str
    has_both: Callable[[RunSettings], bool]
    why: str


def _rounds_models(settings: RunSettings) -> bool:
    is_rounded = settings.scheme is not None or settings.uplink_bits is not None
    return is_rounded and settings.uplink == "weights"


_EXCLUDED = (
    _Excluded(
        *("aggregator: FedNova", "uplink: weights on a grid"),
        lambda settings: settings.aggregator.sends_scaled_changes and _rounds_models(settings),
        "its clients send shares of their changes, which the rounding of whole models would lose; take uplink: delta",
    ),
)


def check_combinations(settings: RunSettings) -> None:
    """Refuse settings that exclude each other.

    Raises:
        ConfigurationError: The first two that do.
    """
    for row in _EXCLUDED:
        if row.has_both(settings):
            raise ConfigurationError(f"{row.one} and {row.other} cannot be together: {row.why}")
