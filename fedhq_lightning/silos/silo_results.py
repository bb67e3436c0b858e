"""What a module logs on an epoch, averaged over the silos.

An ordinary script logs `val_loss` without `sync_dist=True`. Under DDP every process would then hold a value of its own,
by which callbacks decide and name files. Here every silo tells what it collected under a name, and each computes the
same value of it. DDP's own `sync_dist=True` is not asked: it halves whole numbers of examples downwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypedDict

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from fedhq_lightning.support.collectives import Processes


class Part(TypedDict):
    """What one silo collected under a name; travels as JSON.

    Attributes:
        synchronizes: Whether it is a torchmetrics object that gathers its own states.
        total: Sum of values times weights in a mean, else the reduced value; None where it is no single number.
        weight: Examples, or what was given as `batch_size`.
    """

    synchronizes: bool
    total: float | None
    weight: float


def pending(results: Mapping[str, Any]) -> dict[str, Any]:
    """What was logged on an epoch since it was last agreed on, by hook and name.

    Args:
        results: Lightning's collection of an epoch.
    """
    return {
        key: result
        for key, result in results.items()
        if result.meta.on_epoch and not result.has_reset and result._computed is None
    }


def forget_computed(result: Any) -> None:
    """Have the next one to ask compute a result anew."""
    result._computed = None
    if not result.is_tensor:
        for metric in result.value.modules():
            if isinstance(metric, Metric):
                metric._computed = None


def agree(
    results: Mapping[str, Any],
    examples: Counter[int | None],
    processes: Processes,
    asks: Callable[..., AbstractContextManager[None]],
) -> None:
    """Compute what was logged on epochs since the last time; every silo calls it, whatever each has logged.

    A mean weighs every example alike, sums are added, of extremes the extreme is taken, and torchmetrics gather their
    states. A name that some silos did not log is averaged over those that did; torchmetrics then stay each silo's own,
    and so does what is logged with `rank_zero_only`.

    Args:
        results: Lightning's collection of the epoch; computed values are put into it.
        examples: That this silo has seen so far, by number of the loader, and of all loaders under None.
        processes: The silos.
        asks: `SiloStrategy.asks`, which decides for a while whether torchmetrics ask the other silos.
    """
    mine = pending(results)
    with asks(others=False):
        told = {key: _part(result, examples) for key, result in mine.items() if not result.meta.sync.rank_zero_only}
    everybodys = processes.gather(told)
    for key in sorted({key for each in everybodys for key in each}):
        parts: list[Part] = [each[key] for each in everybodys if key in each]
        synchronizes = all(part["synchronizes"] for part in parts)
        if synchronizes and len(parts) < len(everybodys):
            rank_zero_warn(
                f"a torchmetrics object is logged as {key!r} by {len(parts)} of {len(everybodys)} silos, so that their "
                "states cannot be gathered, and each keeps its own value; log it on every silo"
            )
        elif key in mine and synchronizes:
            forget_computed(mine[key])
            with asks(others=True):
                mine[key].compute()
        elif key in mine and all(part["total"] is not None for part in parts):
            mine[key]._computed = _reduced(mine[key], parts)
    with asks(others=False):
        for result in mine.values():
            result.compute()  # where nothing was agreed on


def epoch_values(results: Mapping[str, Any]) -> dict[str, Tensor]:
    """Values that were agreed on, by name as callbacks see it, of all loaders.

    Args:
        results: Lightning's collection of the epoch.
    """
    values: dict[str, Tensor] = {}
    for result in results.values():
        if result.meta.on_epoch and not result.has_reset and isinstance(result._computed, Tensor):
            name, forked = results._forked_name(result, on_step=False)  # type: ignore[attr-defined]  # Lightning's
            values[name] = values[forked] = result._computed
    return values


def _part(result: Any, examples: Counter[int | None]) -> Part:
    if result.is_tensor:
        weight = result.cumulated_batch_size if result.meta.is_mean_reduction else 1
        return {"synchronizes": False, "total": float(result.value), "weight": float(weight)}
    if result.value._to_sync:
        return {"synchronizes": True, "total": None, "weight": 0.0}
    value, seen = result.compute(), examples[result.meta.dataloader_idx]
    total = float(value) * seen if isinstance(value, Tensor) and value.numel() == 1 else None
    return {"synchronizes": False, "total": total, "weight": float(seen)}


def _reduced(result: Any, parts: list[Part]) -> Tensor:
    """One value of everybody's parts: in float64 and by rank, so that every silo finds the same bits."""
    totals, weights = (torch.tensor([part[key] for part in parts], dtype=torch.float64) for key in ("total", "weight"))
    if not result.is_tensor:
        value = result._computed
        return (totals.sum() / weights.sum()).to(value.device, value.dtype)
    reduce_fx = result.meta.reduce_fx
    if result.meta.is_mean_reduction:
        found = totals.sum() / weights.sum()
    else:
        # Given as torch's or as Python's own.
        found = getattr(torch, reduce_fx.__name__)(totals)
    return found.to(result.value.device, result.value.dtype)
