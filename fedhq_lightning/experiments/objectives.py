"""What a study optimizes: numbers of `summary.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fedhq_lightning.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from fedhq_lightning.run.records import RoundRecord

Direction: TypeAlias = Literal["min", "max"]

METRICS = ("metric_quantized", "metric_fp")
"""The monitored metric of the deployed and of the global model: as good as `monitor_mode` says."""
COSTS = (
    "virtual_seconds",
    "wall_seconds",
    "fit_wall_seconds",
    "allocator_seconds",
    "uplink_bytes",
    "downlink_bytes",
)
"""What adds up over the rounds; `RoundRecord` has each under the same name."""
OTHERS = (
    "worst_client.metric",
    "on_clients.quantized.mean",
    "on_clients.quantized.worst_decile",
    "on_clients.quantized.spread",
    "fine_tuning.after.quantized.mean",
    "fine_tuning.after.quantized.worst_decile",
    "rounds",
    "best_round",
    "late",
    "idle",
    "quarantined",
    "mode_counts.fp",
    "mode_counts.ptq",
    "mode_counts.qat",
)
NAMES = METRICS + COSTS + OTHERS
DEFAULT = ("metric_quantized", "virtual_seconds")


@dataclass(frozen=True)
class Objective:
    """One number to optimize.

    Attributes:
        name: Of the summary; a point goes into a part of it.
        direction: Whether less or more is better.
    """

    name: str
    direction: Direction

    @property
    def optuna_direction(self) -> Literal["minimize", "maximize"]:
        """Optuna's word for the direction."""
        return "maximize" if self.direction == "max" else "minimize"

    def value(self, summary: Mapping[str, Any]) -> float | None:
        """Its value in a run's summary; None where that has none, or not a finite one."""
        node: Any = summary
        for part in self.name.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, bool) or not isinstance(node, int | float) or not math.isfinite(node):
            return None
        return float(node)

    def is_better(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`."""
        return value > other if self.direction == "max" else value < other


def parse_objectives(given: Any, monitor_mode: Direction) -> tuple[Objective, ...]:
    """Check the names and give each its direction.

    Args:
        given: A name, a list of names, or a mapping name -> `min` or `max`.
        monitor_mode: Direction of the monitored metric.

    Raises:
        ConfigurationError: A name that no run logs, a name given twice, no name, or no such direction.
    """
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence | Mapping) or not names:
        raise ConfigurationError(f"objectives {given!r}: give one or several of {', '.join(NAMES)}")
    directions: dict[str, Direction] = {}
    for name in names:
        if name not in NAMES:
            raise ConfigurationError(
                f"objectives: nobody logs {name!r}; a run's summary has {', '.join(NAMES)}{nearest(str(name), NAMES)}"
            )
        if name in directions:
            raise ConfigurationError(f"objectives: {name} is there twice")
        of_metric = name in METRICS or name == "worst_client.metric" or name.endswith((".mean", ".worst_decile"))
        direction = names[name] if isinstance(names, Mapping) else (monitor_mode if of_metric else "min")
        if direction not in ("min", "max"):
            raise ConfigurationError(f"objectives: {name}: direction {direction!r}; allowed are min and max")
        directions[name] = direction
    return tuple(Objective(name, direction) for name, direction in directions.items())


def totals(objectives: Sequence[Objective], record: RoundRecord, before: Mapping[str, float]) -> dict[str, float]:
    """The objectives' values so far, as of the end of a round.

    Args:
        objectives: Those of the study; what cannot be known before a run's end is left out.
        record: The round.
        before: The same after the round before; empty at the start.
    """
    now: dict[str, float] = {}
    for name in (each.name for each in objectives):
        if name in COSTS:
            now[name] = before.get(name, 0.0) + getattr(record, name)
        elif name in METRICS and getattr(record, name) is not None:
            now[name] = getattr(record, name)
    return now
