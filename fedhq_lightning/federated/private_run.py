"""What a private run cannot have, because it would tell of clients what no noise covers; and its ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.checks import Probe
from fedhq_lightning.federated.privacy.example_gradients import num_rows
from fedhq_lightning.federated.privacy.ledger import CentralLedger, Ledger, LocalLedger
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy, LocalPrivacy
from fedhq_lightning.federated.sampling import CohortSampler
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.types import ClientId


def ledger_of(
    settings: RunSettings,
    datamodule: FederatedDataModule,
    sampler: CohortSampler,
    position: Callable[[ClientId], int],
) -> Ledger:
    """Keeps account of what a run spends.

    Args:
        settings: Of the run.
        datamodule: The clients' data, set up.
        sampler: Of the run.
        position: Of a client.

    Raises:
        ConfigurationError: See `CentralLedger` and `LocalLedger`.
    """
    if isinstance(settings.privacy, CentralPrivacy):
        return CentralLedger(settings.privacy, sampler.rate, settings.max_rounds)
    if isinstance(settings.privacy, LocalPrivacy):
        clients = sampler.with_data()
        return LocalLedger(settings.privacy, settings.fit_options, datamodule, clients, position, settings.max_rounds)
    return Ledger()


def check_private_run(
    settings: RunSettings,
    allocator: Allocator,
    probe: Probe,
    monitor: str | None,
    has_trace: bool,
    batch: Callable[[], Any],
) -> None:
    """Refuse a private run whose guarantee would not hold, by the name of what stands against it.

    Args:
        settings: Of the run.
        allocator: Set up.
        probe: Of the module.
        monitor: What is watched.
        has_trace: Whether the fleet says when clients are available.
        batch: Gives one of some client.

    Raises:
        ConfigurationError: The first such thing.
    """
    privacy = settings.privacy
    if privacy is None:
        return
    name = type(privacy).__name__
    if probe.batch_norms or probe.batch_norm:
        layer = probe.batch_norm or next(iter(probe.batch_norms))
        raise ConfigurationError(
            f"{name}: {layer} is a BatchNorm layer, whose statistics clients would send without noise, and which mixes "
            "the examples of a batch; take a norm of single examples, such as GroupNorm"
        )
    if not allocator.plans_each_client_alone:
        raise ConfigurationError(
            f"{name}: {type(allocator).__name__} plans with what clients tell of their data or with who else is in the "
            "cohort, so one client would show in the modes of others; take FixedAllocator with a mode, a share or a map"
        )
    if monitor is not None and monitor not in probe.validation_names:
        raise ConfigurationError(
            f"{name}: {monitor} is what clients find on their own data, without noise, and would choose the model; "
            "monitor what a validation_step logs on held-out data of the server"
        )
    if has_trace and isinstance(privacy, CentralPrivacy):
        raise ConfigurationError(
            "CentralPrivacy: the fleet has an availability trace, with which the duration of a round, and so who was "
            "in it, decides who can be drawn next; take a fleet without"
        )
    if isinstance(privacy, LocalPrivacy):
        num_rows(batch())
