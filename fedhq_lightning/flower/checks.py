"""What cannot go over a network yet, refused by name before round 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator
from fedhq_lightning.federated.settings import RunSettings


def check_can_travel(settings: RunSettings, described: Mapping[str, Any]) -> None:
    """Refuse what clients on nodes do not do.

    Args:
        settings: What was asked for.
        described: The trainer's arguments by name.

    Raises:
        ConfigurationError: The first of them.
    """
    aggregator = type(settings.aggregator).__name__
    refused = (
        (settings.personal_layers is not None, "personal_layers", "nodes do not evaluate models of their own"),
        (settings.ditto is not None, "ditto", "nodes do not evaluate models of their own"),
        (
            isinstance(settings.aggregator, AsynchronousAggregator),
            f"aggregator {aggregator}",
            "rounds wait for the nodes that they asked",
        ),
        (settings.secure_aggregation is not None, "secure_aggregation", "nodes do not exchange keys"),
        (settings.privacy is not None, "privacy", "its account is not kept for nodes"),
        (settings.fine_tuning is not None, "fine_tuning", "nodes do nothing after the last round"),
        (bool(settings.evaluate_clients), "evaluate_clients", "nodes train, and do not evaluate"),
        (described["devices"] not in (1, "1"), "devices", "the server is one process, and so is each node"),
        (described["num_nodes"] != 1, "num_nodes", "Flower's own nodes are counted by Flower"),
    )
    for is_asked, name, why in refused:
        if is_asked:
            raise ConfigurationError(
                f"{name}: does not work with clients on nodes yet, since {why}; leave it out, or run it here with "
                "fedhq run"
            )
