from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.flower.messages import Answer, Order
from fedhq_lightning.flower.node import NodeOfRecipe

from .nodes_here import text_of

RUN = "20260101-000000-000000"


def failure_of(position: int, order: Order | str, changes: dict[str, Any] | None = None) -> str:
    node = NodeOfRecipe("small", text_of(changes or {}), position, Path("kept"))
    text, payload = node.answer(order if isinstance(order, str) else order.to_text(), b"")
    assert payload == b""
    return Answer.of_text(text).failure


@pytest.mark.parametrize(
    ("position", "order", "expected"),
    [
        (0, "{", "Invalid JSON"),
        (
            3,
            Order("fit", 1, 3, "", run=RUN),
            "partition-id 3: the recipe's data are of 3 clients, so it must be 0 to 2",
        ),
        (0, Order("fit", 1, 1, "", run=RUN), "this node holds client 0, and was asked as 1"),
        (0, Order("fit", 1, 0, "", run="../20260101-000000-000000"), "is no name of a run"),
        (0, Order("fit", 1, 0, "", run="20260101-000000-000000-/../.."), "is no name of a run"),
        (0, Order("fit", 1, 0, "", run=f"{RUN}-mine"), "is no name of a run"),
        (0, Order("fit", 1, 0, "other", run=RUN), "what no round changes of the model"),
    ],
    ids=["no JSON", "no such client", "another client", "no run", "a way out", "a user's name", "another recipe"],
)
def test_what_a_node_cannot_do_it_tells(position: int, order: Order | str, expected: str) -> None:
    assert expected in failure_of(position, order)


def test_a_recipe_that_cannot_be_run_there_is_told() -> None:
    told = failure_of(0, Order("fit", 1, 0, "", run=RUN), {"trainer.scheme": "w99a8"})
    assert told.startswith("trainer.scheme 'w99a8': ")


def test_where_clients_keep_something_the_order_names_the_run() -> None:
    told = failure_of(0, Order("fit", 1, 0, ""), {"trainer.error_feedback": True})
    assert told == "its client keeps what the next round needs, and the order does not name the run"
