"""The numbers of a round as loggers get them, and a run's worth of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.run.records import LEFT_OUT, RoundRecord
from fedhq_lightning.types import MODES

ROUND = "round"
"""Name of the axis that everything is logged on."""
METRICS = ("metric_quantized", "metric_fp")
"""The monitored metric of the deployed and of the global model."""
CLOCK = "seconds/virtual"
"""In every round's row, and in nothing else that is logged."""
OVER_VIRTUAL_TIME = "_by_virtual_seconds"
"""What a metric's name ends in where a tracker gets it a second time, for the axis of virtual seconds."""
QAT_SHARE = "qat_share"
"""Of the round's clients, for a tracker's first charts."""
ROUND_BYTES = "round_bytes"
"""Up and down, likewise."""
MONITOR = "monitor"
"""Key of the tracker's config for the monitored metric's name."""
MONITOR_MODE = "monitor_mode"
"""Key of the tracker's config for its direction, "min" or "max"."""

_TRACKERS_OWN = ("_", "trainer/global_step", "virtual/")  # the last: metrics again, in runs of before 0.3
_TOLD_TWICE = (QAT_SHARE, ROUND_BYTES)
_SETTINGS = ("model", "data", "trainer")
_WORDS_FOR_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def first_charts(values: Mapping[str, float]) -> dict[str, float]:
    """What a tracker shows first, beside `metric_quantized` and `metric_fp`: these over virtual seconds, modes, bytes.

    The names have no prefix, so that a tracker which groups by prefixes has all of them, and little else, in one group.

    Args:
        values: What `logged_values` gave of a round.
    """
    charts = {name + OVER_VIRTUAL_TIME: values[name] for name in METRICS if name in values}
    clients = sum(values[f"clients/{mode}"] for mode in MODES)
    if clients:
        charts |= {QAT_SHARE: values["clients/qat"] / clients}
        charts |= {ROUND_BYTES: values["bytes/uplink"] + values["bytes/downlink"]}
    return charts


def logged_values(record: RoundRecord) -> dict[str, float]:
    """The numbers of one round by the names under which loggers, and the fine allocator, get them.

    Returns:
        `round`; `fp/...`, `quantized/...` and `train/...`; `clients/...` (counts); `seconds/...` and `bytes/...`;
        `allocation/...` where the allocator logged something; `privacy/epsilon` of a private run; `metric_fp` and
        `metric_quantized` where evaluated.
    """
    values: dict[str, float] = {ROUND: record.round, **record.metrics}
    values |= {f"clients/{mode}": count for mode, count in record.mode_counts.items()}
    values |= {
        **{f"clients/{status}": getattr(record, status) for status in LEFT_OUT},
        "seconds/wall": record.total_wall_seconds,
        CLOCK: record.total_virtual_seconds,
        "seconds/fit_wall": record.fit_wall_seconds,
        "seconds/allocator": record.allocator_seconds,
        "bytes/uplink": record.uplink_bytes,
        "bytes/downlink": record.downlink_bytes,
    }
    values |= {f"allocation/{name}": value for name, value in record.allocation.items()}
    if record.epsilon is not None:
        values["privacy/epsilon"] = record.epsilon
    for name in METRICS:
        value = getattr(record, name)
        if value is not None:
            values[name] = value
    return values


@dataclass(frozen=True)
class LoggedHistory:
    """One run's numbers, as it logged them.

    Attributes:
        source: What was read, for messages.
        rows: One a round, in order of rounds: what `logged_values` gave.
        settings: The run's `model`, `data` and `trainer` as its recipe or its script set them; empty where unknown.
        metric_name: What was monitored, None where unknown.
        monitor_mode: Whether a larger or a smaller value of it is better, None where unknown.
    """

    source: str
    rows: Sequence[Mapping[str, float]]
    settings: Mapping[str, Any]
    metric_name: str | None = None
    monitor_mode: Literal["min", "max"] | None = None

    @property
    def scheme(self) -> Any:
        """The deployment grid as set; None without one, or where unknown."""
        trainer = self.settings.get("trainer")
        return trainer.get("scheme") if isinstance(trainer, Mapping) else None

    @property
    def names(self) -> list[str]:
        """Every name that was logged, sorted."""
        return sorted({name for row in self.rows for name in row})

    def check(
        self,
        names: Iterable[str] = ("allocation/slack", "allocation/share"),
        metric_name: str | None = None,
        monitor_mode: str | None = None,
    ) -> None:
        """Refuse a run from which nothing can be learned.

        Args:
            names: What must have been logged in at least one round; that and a metric.
            metric_name: What this run monitors, None to let any pass.
            monitor_mode: Its direction, likewise.

        Raises:
            ConfigurationError: A name was never logged, no round was evaluated, or another metric was monitored.
        """
        logged = self.names
        listed = ", ".join(logged)
        for name in names:
            if name not in logged:
                raise ConfigurationError(
                    f"{self.source}: {name} was never logged, so nothing can be learned from it; logged were: {listed}"
                    f"{nearest(name, logged)}; name a run that a HybridAllocator planned"
                )
        if not {"metric_quantized", "metric_fp"} & set(logged):
            raise ConfigurationError(f"{self.source}: no round was evaluated; logged were: {listed}")
        wanted = (("metric", metric_name, self.metric_name), ("direction", monitor_mode, self.monitor_mode))
        for word, ours, theirs in wanted:
            if ours is not None and theirs is not None and ours != theirs:
                raise ConfigurationError(
                    f"{self.source}: its monitored {word} is {theirs!r}, this run's is {ours!r}; name a run that "
                    "monitors the same, or set trainer.monitor and trainer.monitor_mode"
                )


def make_history(
    source: str, rows: Iterable[Mapping[str, Any]], config: Mapping[str, Any], metric_name: str | None = None
) -> LoggedHistory:
    """A history from what a source holds.

    Args:
        source: For messages.
        rows: As logged, in that order. What is no number, the tracker's own columns and rows that belong to no round
            are left out. A round that is logged again, because a killed run was resumed before it, takes the place of
            the earlier one and of all that followed.
        config: Settings of the run, or what the tracker was given as its config.
        metric_name: What was monitored, where the source knows better than its config.

    Raises:
        ConfigurationError: No round is left.
    """
    kept: list[dict[str, float]] = []
    for row in map(_numbers, rows):
        if CLOCK not in row or not math.isfinite(row.get(ROUND, math.nan)):
            continue
        while kept and kept[-1][ROUND] >= row[ROUND]:
            kept.pop()
        kept.append(row)
    if not kept:
        raise ConfigurationError(f"{source}: holds no round of a federated run; nothing was logged under {CLOCK!r}")
    recipe = config.get("recipe")
    found = recipe if isinstance(recipe, Mapping) else config
    settings = {name: found[name] for name in _SETTINGS if name in found}
    trainer = settings.get("trainer")
    trainer = trainer if isinstance(trainer, Mapping) else {}
    name = metric_name or config.get(MONITOR) or trainer.get("monitor") or _monitored(kept)
    mode = config.get(MONITOR_MODE) or trainer.get("monitor_mode")
    return LoggedHistory(
        source, kept, settings, name if isinstance(name, str) else None, mode if mode in ("min", "max") else None
    )


def _monitored(rows: Sequence[Mapping[str, float]]) -> str | None:
    """The metric whose values are the monitored ones in every row; None where that is not exactly one."""
    for kind in ("quantized", "fp"):
        own = [row for row in rows if f"metric_{kind}" in row]
        prefix = f"{kind}/"
        names = {name.removeprefix(prefix) for row in own for name in row if name.startswith(prefix)}
        same = [name for name in names if all(row.get(prefix + name) == row[f"metric_{kind}"] for row in own)]
        if own:
            return same[0] if len(same) == 1 else None
    return None


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Without text, tables and what the trackers add themselves."""
    numbers = {}
    for name, value in row.items():
        if name.startswith(_TRACKERS_OWN) or name.endswith(OVER_VIRTUAL_TIME) or name in _TOLD_TWICE:
            continue
        value = _WORDS_FOR_NUMBERS.get(value, value) if isinstance(value, str) else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = value
    return numbers
