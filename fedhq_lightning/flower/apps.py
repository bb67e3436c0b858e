"""The two halves of a Flower app. Needs the extra `flower`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.support.extras import check_installed
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.support.quiet import say_line

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when flwr is imported; what the user set stands


def server_app(file: str, recipe: str) -> ServerApp:
    """The half that plans, aggregates, evaluates and records.

    Args:
        file: `__file__` of the app's module.
        recipe: Name of the recipe's file beside it.

    Raises:
        ConfigurationError: flwr is not installed.
    """
    check_installed("a Flower app", "flwr")
    from flwr.serverapp import ServerApp

    from fedhq_lightning.flower.grid_nodes import GridNodes, WaitingTimes

    def main(grid: Any, context: Any) -> None:
        from fedhq_lightning.flower.server_run import run_on
        from fedhq_lightning.report.final_table import print_final

        config = context.run_config
        name, text = _read(file, recipe)
        nodes = GridNodes(grid, WaitingTimes.of(config))
        trainer = run_on(nodes, name, text, config.get("runs") or None, config.get("resume") or None)
        print_final(trainer.summary)
        say_line(f"model, report and records: {trainer.run_dir}", sys.stdout)

    app = ServerApp()
    app.main()(main)
    return app


def client_app(file: str, recipe: str) -> ClientApp:
    """The half that trains one client with the data of its node.

    Args:
        file: `__file__` of the app's module.
        recipe: Name of the recipe's file beside it.

    Raises:
        ConfigurationError: flwr is not installed.
    """
    check_installed("a Flower app", "flwr")
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    from fedhq_lightning.flower import records

    nodes: dict[int, Any] = {}

    def query(message: Message, context: Any) -> Message:
        return Message(records.of_place(_place_in(context.node_config)), reply_to=message)

    def train(message: Message, context: Any) -> Message:
        from fedhq_lightning.flower.node import NodeOfRecipe

        place = _place_in(context.node_config)
        if place not in nodes:  # in Flower's simulation one process may be several clients
            kept = context.node_config.get("client-state") or Path(os.environ.get("FLWR_HOME", "~/.flwr"), "fedhq")
            nodes[place] = NodeOfRecipe(*_read(file, recipe), place, expand_path(str(kept), "client-state"))
        text, payload = nodes[place].answer(*records.opened(message.content))
        return Message(records.of(text, payload), reply_to=message)

    app = ClientApp()
    app.query()(query)
    app.train()(train)
    return app


def _read(file: str, recipe: str) -> tuple[str, str]:
    """Name and text of the app's recipe."""
    path = Path(file).resolve().with_name(recipe)
    return path.stem, recipe_files.read(path)


def _place_in(node_config: Mapping[str, Any]) -> int:
    """The client's place among the recipe's clients.

    Raises:
        ConfigurationError: The node does not say.
    """
    place = node_config.get("partition-id")
    if not isinstance(place, int) or isinstance(place, bool):
        raise ConfigurationError(
            f"partition-id {place!r}: the node does not say which client it is; start its SuperNode with --node-config "
            "'partition-id=0', the client's place among the recipe's clients"
        )
    return place
