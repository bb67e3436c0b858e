"""Whether, when and by whom global models are evaluated on what clients hold back; what is checked of it beforehand."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lightning import LightningModule

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.monitor_mode import resolve_monitor_mode
from fedhq_lightning.local.evaluation import as_loaders
from fedhq_lightning.run.evaluated_clients import PREFIX, STATISTICS, metric_of
from fedhq_lightning.support.lightnings import is_overridden
from fedhq_lightning.support.notes import noted
from fedhq_lightning.support.seeds import derive_seed, generators_kept
from fedhq_lightning.types import ClientId, MonitorMode


@dataclass(frozen=True)
class ClientEvaluation:
    """How often clients evaluate global models on what they hold back, and how many of them.

    Args:
        every_n_rounds: A multiple of the run's `eval_every_n_rounds`; None is whenever the server evaluates. Round 0
            never counts: nothing has been trained yet.
        clients: How many, the same ones each time: a count at most, a fraction in (0, 1], or None for all.
        seed: By which they are drawn, None for the run's.

    Raises:
        ConfigurationError: A value out of range.
    """

    every_n_rounds: int | None = None
    clients: int | float | None = 100
    seed: int | None = None

    def __post_init__(self) -> None:
        every, clients = self.every_n_rounds, self.clients
        if every is not None and not (_is_whole(every) and every >= 1):
            raise ConfigurationError(f"evaluate_clients: every_n_rounds {every!r}: must be a whole number, 1 or more")
        if clients is None or (_is_whole(clients) and clients >= 1):
            return
        if not (isinstance(clients, float) and 0 < clients <= 1):
            raise ConfigurationError(
                f"evaluate_clients: clients {clients!r}: must be a count, or a fraction in (0, 1], or null for every "
                "client"
            )

    def panel(self, client_ids: Sequence[ClientId], seed: int) -> list[ClientId]:
        """Who evaluates, in the order of all clients.

        Args:
            client_ids: The clients with training examples.
            seed: The run's.
        """
        count = len(client_ids)
        if isinstance(self.clients, float):
            count = max(1, round(self.clients * count))
        elif self.clients is not None:
            count = min(self.clients, count)
        seed = seed if self.seed is None else self.seed
        generator = random.Random(derive_seed(seed, "clients that evaluate"))
        return [client_ids[position] for position in sorted(generator.sample(range(len(client_ids)), count))]


def check_frequency(asked: ClientEvaluation | bool | None, eval_every_n_rounds: int) -> None:
    """Refuse a frequency at which clients would evaluate models that the server does not.

    Raises:
        ConfigurationError: `every_n_rounds` is no multiple of `eval_every_n_rounds`.
    """
    every = asked.every_n_rounds if isinstance(asked, ClientEvaluation) else None
    if every is not None and every % eval_every_n_rounds:
        raise ConfigurationError(
            f"evaluate_clients: every_n_rounds {every}: must be a multiple of eval_every_n_rounds "
            f"{eval_every_n_rounds}, since the model is made ready to be evaluated in those rounds; set either of them"
        )


def first_held_back(
    asked: ClientEvaluation | bool | None,
    template: LightningModule,
    datamodule: FederatedDataModule,
    client_ids: Sequence[ClientId],
    fine_tunes: bool = False,
) -> list[Any]:
    """One batch of what the first client that holds anything back does, as loaders to try `validation_step` on.

    Args:
        asked: What the trainer was given; None asks where there is something to evaluate on, False never.
        template: The user's module.
        datamodule: Gives the loaders.
        client_ids: The clients with training examples.
        fine_tunes: Whether clients shall tune the model after the last round, which is told by what they hold back.

    Returns:
        None of them where no client is to evaluate.

    Raises:
        ConfigurationError: Clients were asked to, and there is no `validation_step`, or nothing that they hold back.
    """
    if asked is False:
        return []
    has_step = is_overridden("validation_step", template)
    if has_step and type(datamodule).client_val_dataloader is not FederatedDataModule.client_val_dataloader:
        with generators_kept():
            for client_id in client_ids:
                if batches := _first_batches(datamodule, client_id):
                    return batches
    if asked is None and not fine_tunes:
        return []
    key = "fine_tuning" if fine_tunes else "evaluate_clients"
    if not has_step:
        raise ConfigurationError(
            f"{key}: {type(template).__name__} has no validation_step; add one that logs a metric, or set {key} to null"
        )
    raise ConfigurationError(
        f"{key}: no client of {type(datamodule).__name__} holds examples back; set its client_holdout to a share such "
        f"as 0.2, or give it a client_val_dataloader(client_id), or set {key} to null"
    )


def figure_names(metrics: Sequence[str]) -> list[str]:
    """What may be monitored of clients' metrics: `clients/METRIC/STATISTIC`."""
    return [f"{PREFIX}{metric}/{statistic}" for metric in metrics for statistic in STATISTICS]


def directions_of(metrics: Sequence[str], monitor: str | None, monitor_mode: MonitorMode) -> Mapping[str, MonitorMode]:
    """Which way each metric is better: as the run says of the monitored one, else by the words of its name.

    Args:
        metrics: What clients log.
        monitor: What the run monitors, one of them or a figure of one.
        monitor_mode: Its direction.

    Returns:
        Without those of which neither tells.
    """
    found: dict[str, MonitorMode] = {}
    is_of_spread = (monitor or "") == f"{PREFIX}{metric_of(monitor or '')}/spread"
    for metric in metrics:
        if monitor is not None and metric == metric_of(monitor) and not is_of_spread:
            found[metric] = monitor_mode
            continue
        try:
            found[metric] = resolve_monitor_mode(metric, None)
        except ConfigurationError:  # its name does not tell
            continue
    return found


def _first_batches(datamodule: FederatedDataModule, client_id: ClientId) -> list[Any]:
    """One of each of the client's loaders, each as a loader; none where one of these is empty."""
    with noted(f"while client {client_id} gave what it holds back"):
        firsts = [[*islice(loader, 1)] for loader in as_loaders(datamodule.client_val_dataloader(client_id))]
    return firsts if all(firsts) else []


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
