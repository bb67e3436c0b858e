"""Callbacks that act on a monitored value have to act alike on every silo."""

from __future__ import annotations

import re
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from fedhq_lightning.drop_in.trainer_parts import callbacks_of
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.lightnings import both
from fedhq_lightning.types import MonitorMode

_SAME_ON_ALL = frozenset({"epoch", "step"})
"""Names that Lightning, or the end of an epoch of silos, gives a value of their own."""


def monitored_values(trainer: pl.Trainer, is_validation: bool) -> dict[str, dict[str, str]]:
    """What the callbacks that are about to act will look at on this silo.

    Args:
        trainer: In a fit.
        is_validation: Whether validation has ended; else a training epoch has.

    Returns:
        By callback the names that it looks at, monitored or put into a file's name, each with its value as text, empty
        where there is none.
    """
    looked_at: dict[str, set[str]] = {}
    for each in callbacks_of(trainer):
        if isinstance(each, both(EarlyStopping)) and bool(each._check_on_train_epoch_end) != is_validation:
            looked_at.setdefault("EarlyStopping", set()).add(each.monitor)
        elif isinstance(each, both(ModelCheckpoint)) and each._should_save_on_train_epoch_end(trainer) != is_validation:
            names = {each.monitor} | set(re.findall(r"\{(.*?)[:\}]", each.filename or ""))
            looked_at.setdefault("ModelCheckpoint", set()).update(name for name in names if name)
    values = trainer.callback_metrics
    return {
        callback: {name: repr(values[name].tolist()) if name in values else "" for name in names - _SAME_ON_ALL}
        for callback, names in looked_at.items()
    }


def refuse_own_values(everybodys: Sequence[dict[str, dict[str, str]]]) -> None:
    """Refuse what each silo has a value of its own of: they would stop, and keep checkpoints, differently.

    Args:
        everybodys: What `monitored_values` gave, by rank.

    Raises:
        ConfigurationError: The first such name.
    """
    for callback in sorted({callback for each in everybodys for callback in each}):
        held = [each.get(callback, {}) for each in everybodys]
        for name in sorted({name for values in held for name in values}):
            values = [each.get(name, "") for each in held]
            if len(set(values)) > 1:
                told = ", ".join(value or "none" for value in values)
                raise ConfigurationError(
                    f"{callback} looks at {name!r}, of which every silo has a value of its own ({told}): it is logged "
                    "on steps, by some silos only, or with rank_zero_only; log it on every silo with "
                    "self.log(..., on_step=False, on_epoch=True), or look at another name"
                )


def watched_metric(trainer: pl.Trainer) -> tuple[str | None, MonitorMode]:
    """Name and direction of what ModelCheckpoint or EarlyStopping watches, else nothing."""
    for each in callbacks_of(trainer):
        is_watching = isinstance(each, both(ModelCheckpoint, EarlyStopping))
        if is_watching and each.monitor is not None:
            mode: MonitorMode = "max" if each.mode == "max" else "min"
            return str(each.monitor).removeprefix("quantized/"), mode
    return None, "max"
