"""Nodes in this process: each hears and says texts and bytes, as over a network."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedhq_lightning.flower.messages import Order, Reply
from fedhq_lightning.flower.node import NodeOfRecipe
from fedhq_lightning.types import ClientId

from ..small_recipe import changed

RECIPE: dict[str, Any] = {
    "model.class_path": "tests.normed_module.Normed",
    "model.init_args": {"image_size": 8},
    "data.init_args.partitioner": {
        "class_path": "flwr_datasets.partitioner.IidPartitioner",
        "init_args": {"num_partitions": 3},
    },
    "trainer.clients_per_round": None,
    "trainer.callbacks": [
        {
            "class_path": "fedhq_lightning.callbacks.FixedAllocator",
            "init_args": {"allocation": {"0": "ptq", "1": "qat", "2": "fp"}},
        }
    ],
    "trainer.enable_progress_bar": False,
    "trainer.final_evaluation": False,
}
"""Three clients, one in each mode, of a module with batch normalization, on top of the small recipe."""

NO_ANSWER = Reply(missing="no answer within 3 s", is_late=True)


def text_of(changes: dict[str, Any]) -> str:
    """The recipe, changed further."""
    return yaml.safe_dump(changed(RECIPE | changes), sort_keys=False)


class NodesHere:
    """Nodes that answer one after another, the last asked first.

    Args:
        text: Of the recipe.
        meddle: Makes of an order's reply another.

    Attributes:
        folder: Where clients keep what they keep.
        away: Rounds and clients whose nodes hear of nothing: none trains, and no answer comes.
    """

    def __init__(self, text: str, meddle: Callable[[Order, Reply], Reply] = lambda order, reply: reply) -> None:
        self._text = text
        self.folder = Path(yaml.safe_load(text)["trainer"]["default_root_dir"], "kept")
        self._nodes = [NodeOfRecipe("small", text, position, self.folder) for position in range(3)]
        self._meddle = meddle
        self.orders: list[Order] = []
        self.away: Collection[tuple[int, ClientId]] = ()

    def join(self, client_ids: Sequence[ClientId], needed: Sequence[ClientId]) -> None:
        assert list(client_ids) == list(needed) == [0, 1, 2]

    def ask(self, orders: Sequence[Order], payload: bytes) -> Iterator[tuple[ClientId, Reply]]:
        self.orders += orders
        for order in reversed(orders):
            if (order.round, order.client_id) in self.away:
                yield order.client_id, NO_ANSWER
                continue
            began = time.perf_counter()
            text, made = self._nodes[int(order.client_id)].answer(order.to_text(), payload)
            yield order.client_id, self._meddle(order, Reply(text, made, time.perf_counter() - began))

    def restart(self, position: int) -> None:
        self._nodes[position] = NodeOfRecipe("small", self._text, position, self.folder)
