"""What cannot be where no round waits."""

from __future__ import annotations

from fedhq_lightning.devices import Fleet
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator
from fedhq_lightning.federated.settings import RunSettings


def checked(settings: RunSettings, fleet: Fleet, num_training: int) -> AsynchronousAggregator | None:
    """The run's asynchronous algorithm, if it has one.

    Args:
        settings: Of the run.
        fleet: Of the run.
        num_training: Clients that train at once.

    Raises:
        ConfigurationError: A step takes more updates than clients train at once, or fewer than `min_clients`; a fleet
            whose clients come and go; an allocator for which a round lasts as long as its slowest client.
    """
    aggregator, allocator = settings.aggregator, settings.allocator
    if not isinstance(aggregator, AsynchronousAggregator):
        return None
    name, size = type(aggregator).__name__, aggregator.buffer_size
    if size > num_training:
        raise ConfigurationError(
            f"{name} buffer_size {size}: {num_training} clients train at once, so as many updates are never on their "
            "way; lower it, or raise clients_per_round"
        )
    if settings.min_clients > size:
        raise ConfigurationError(
            f"min_clients {settings.min_clients}: a step of {name} takes {size} updates, so none would move the model; "
            "lower it, or raise buffer_size"
        )
    if fleet.availability is not None:
        raise ConfigurationError(
            f"{name} and a fleet with a trace cannot be together: whether a client is still there when its update is "
            "done is not modelled; take a fleet of profiles"
        )
    if allocator is not None and allocator.looks_at_the_slowest:
        raise ConfigurationError(
            f"{name} and {type(allocator).__name__} cannot be together: it plans by the slowest client of a round, and "
            "no round waits for it; take HybridAllocator, which does not then, or FixedAllocator"
        )
    return aggregator
