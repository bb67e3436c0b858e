"""What a module logs at the end of an epoch, averaged over the silos.

An ordinary script logs `val_loss` without `sync_dist=True`. Under DDP every process would then hold a value of its own,
by which callbacks decide and name files. Here a value that every silo logged is reduced as `sync_dist=True` reduces it
(a mean weighs every example alike), and one that some silos did not log stays each silo's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.lightnings import both


def average_epoch_ends(trainer: pl.Trainer, average: Callable[[Mapping[str, Any]], None]) -> None:
    """Make the trainer average over silos what evaluation logs, from the next evaluation on.

    Args:
        trainer: Its connector is changed, not its class.
        average: What to do with the results of a loader, on every silo after its last batch.
    """
    # Lightning's advice to synchronize by hand, which would be followed by nothing here.
    for kind in both(PossibleUserWarning):
        warnings.filterwarnings("ignore", ".*recommended to use `self.log.*sync_dist=True.*", kind)
    connector: Any = trainer._logger_connector
    if "update_eval_epoch_metrics" in vars(connector):
        return
    update = connector.update_eval_epoch_metrics

    def average_and_update() -> Any:
        if not trainer.sanity_checking:
            average(trainer._results or {})
        return update()

    connector.update_eval_epoch_metrics = average_and_update


def average_results(results: Mapping[str, Any], device: torch.device) -> None:
    """Compute what was logged on epochs so far; called on every silo after the last batch.

    Args:
        results: Lightning's collection of an epoch, by hook and name.
        device: Of the silo.
    """
    mine = {
        key: result
        for key, result in results.items()
        if result.meta.on_epoch and not result.has_reset and result._computed is None
    }
    processes = Processes(device)
    if processes.count == 1:
        return
    everybodys = processes.gather(sorted(mine))
    shared = set(everybodys[0]).intersection(*everybodys)
    for key in sorted(shared):
        _compute(mine[key], asks_others=True)
    for key in mine.keys() - shared:
        _warn_if_asked_to_synchronize(mine[key])
        _compute(mine[key], asks_others=False)


def _compute(result: Any, asks_others: bool) -> None:
    """Fill the result's cache, which is emptied by the next value logged."""
    if not result.is_tensor:
        metric = result.value
        before = metric.sync_on_compute, metric._to_sync
        if not asks_others:
            metric.sync_on_compute = metric._to_sync = False
        result.compute()
        metric.sync_on_compute, metric._to_sync = before
        return
    sync = result.meta.sync
    before = sync.should
    sync.should = asks_others
    result.compute()
    # Lightning compares it with that of the next call of self.log.
    sync.should = before


def _warn_if_asked_to_synchronize(result: Any) -> None:
    if result.meta.sync.should:
        rank_zero_warn(
            f"self.log({result.meta.name!r}, sync_dist=True): not every silo logged it, so each keeps its own value"
        )
