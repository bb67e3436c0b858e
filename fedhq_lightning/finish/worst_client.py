"""The client that the deployed model serves worst."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.local.evaluation import Evaluator, as_loaders
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.text import first_line
from fedhq_lightning.types import ClientId

_MOST_CLIENTS = 200
"""Clients on whose own examples the deployed model is evaluated; beyond that it would outlast the run."""


def worst_client(
    evaluator: Evaluator,
    state: RunState,
    monitor: str | None,
    monitor_mode: str,
    datamodule: FederatedDataModule,
    trained: Iterable[ClientId],
) -> dict[str, Any] | None:
    """The client on whose own training examples the deployed model does worst; None where it cannot be told.

    A client's training batches take the place of the held-out loader that `monitor` is logged from. Where
    `validation_step` cannot take them, a warning says why.
    """
    try:
        values = _values_on_clients(evaluator, state, str(monitor), datamodule, trained)
    except Exception as error:  # of the user's code, on batches that it was not written for
        rank_zero_warn(
            "summary: no worst client, since validation does not run on the clients' training batches: "
            f"{type(error).__name__}: {first_line(error)}"
        )
        return None
    if not values:
        return None
    worst = (max if monitor_mode == "min" else min)(values, key=values.__getitem__)
    name = f"{monitor} on its own training examples"
    return {"client_id": worst, "metric": values[worst], "metric_name": name, "clients_evaluated": len(values)}


def _values_on_clients(
    evaluator: Evaluator,
    state: RunState,
    monitor: str,
    datamodule: FederatedDataModule,
    trained: Iterable[ClientId],
) -> dict[ClientId, float]:
    """What is monitored, where it is finite, on the training batches of the clients that took part."""
    module = evaluator.model(state.deployed) if evaluator.scheme is None else evaluator.deployed(state.deployed)
    loaders: list[Any] = [[] for _ in as_loaders(datamodule.val_dataloader())]
    _, _, suffix = monitor.partition("/dataloader_idx_")
    values = {}
    for client_id in islice(trained, _MOST_CLIENTS):
        loaders[int(suffix or 0)] = datamodule.train_dataloader(client_id)
        value = evaluator.metrics_of(module, loaders).get(monitor, math.nan)
        if math.isfinite(value):
            values[client_id] = value
    return values
