"""Clients and the nodes of a grid, which here is a table of functions."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

pytest.importorskip("flwr")
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.flower import client_app, records
from fedhq_lightning.flower.grid_nodes import GridNodes, WaitingTimes
from fedhq_lightning.flower.messages import Answer, Order

from .nodes_here import text_of

Node = Callable[[Message], Message | None]


class Table:
    """A grid: node id to what the node replies, or None for nothing."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        self.nodes = nodes
        self._replies: dict[str, Message] = {}
        self._count = 0

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = f"message-{self._count}"
            reply = self.nodes[message.metadata.dst_node_id](message)
            if reply is not None:
                self._replies[message.metadata.message_id] = reply
            sent.append(message.metadata.message_id)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(each) for each in message_ids if each in self._replies]


@pytest.fixture(autouse=True)
def _in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def at(place: int, train: Node) -> Node:
    """A node that says which client it is, and trains so."""

    def reply(message: Message) -> Message | None:
        if message.metadata.message_type == "query":
            return Message(records.of_place(place), reply_to=message)
        return train(message)

    return reply


def echo(message: Message) -> Message:
    text, payload = records.opened(message.content)
    return Message(records.of(text.upper(), payload * 2), reply_to=message)


def orders(*client_ids: str) -> list[Order]:
    return [Order("fit", 1, each, "") for each in client_ids]


def test_each_client_is_asked_on_its_node_and_each_reply_is_its_own() -> None:
    nodes = GridNodes(Table({11: at(1, echo), 10: at(0, echo)}), WaitingTimes(5, 5))
    nodes.join(["a", "b"], ["a", "b"])
    replies = dict(nodes.ask(orders("a", "b"), b"model"))
    for order in orders("a", "b"):
        reply = replies[order.client_id]
        assert (reply.text, reply.payload, reply.missing) == (order.to_text().upper(), b"modelmodel", "")
        assert reply.seconds > 0


def test_who_does_not_answer_is_late_and_who_fails_says_why() -> None:
    def fail(message: Message) -> Message:
        return Message(Error(5, "the node is gone"), reply_to=message)

    def other(message: Message) -> Message:
        return Message(RecordDict(), reply_to=message)

    table = Table({10: at(0, lambda message: None), 11: at(1, fail), 12: at(2, other), 13: at(7, echo)})
    nodes = GridNodes(table, WaitingTimes(5, 0.5))
    with pytest.warns(UserWarning, match="1 of 4 clients have no node yet: d; the run begins without them"):
        GridNodes(table, WaitingTimes(0.3, 0.5)).join(list("abcd"), list("abcd"))
    nodes.join(list("abcd"), list("abc"))
    replies = dict(nodes.ask(orders(*"abcd"), b""))
    assert (replies["a"].missing, replies["a"].is_late) == ("no answer within 0.5 s", True)
    assert (replies["b"].missing, replies["b"].is_late) == ("its node failed: the node is gone", False)
    assert replies["c"].missing == "its answer cannot be read: a message of another kind than this package's"
    assert replies["d"].missing == "it has no node"


def test_a_node_that_is_started_again_takes_the_clients_place() -> None:
    table = Table({10: at(0, echo)})
    nodes = GridNodes(table, WaitingTimes(5, 5))
    nodes.join(["a"], ["a"])
    table.nodes = {20: at(0, echo)}
    ((_, reply),) = nodes.ask(orders("a"), b"x")
    assert reply.payload == b"xx"


def test_a_run_without_any_node_ends() -> None:
    with pytest.raises(RunError, match=r"no client has a node after 0\.3 s; start a SuperNode for each"):
        GridNodes(Table({}), WaitingTimes(0.3, 1)).join(["a"], ["a"])


@pytest.mark.parametrize("given", [0, -1, "60", True])
def test_waiting_times_are_above_zero(given: object) -> None:
    with pytest.raises(ConfigurationError, match=r"reply-seconds .*: must be greater than 0"):
        WaitingTimes.of({"reply-seconds": given})


def test_the_client_half_answers_what_the_server_half_asks(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(text_of({}))
    app = client_app(str(tmp_path / "client_app.py"), "small.yaml")

    def node(message: Message) -> Message:
        return app(message, Context(1, 10, {"partition-id": 2}, RecordDict(), {}))

    nodes = GridNodes(Table({10: node}), WaitingTimes(5, 60))
    nodes.join([0, 1, 2], [2])
    ((client_id, reply),) = nodes.ask([Order("fit", 1, 2, "another digest", run="20260101-000000-000000")], b"")
    assert client_id == 2
    assert Answer.of_text(reply.text).failure.startswith("what no round changes of the model")


def test_a_node_that_does_not_say_which_client_it_is_is_told_how(tmp_path: Path) -> None:
    app = client_app(str(tmp_path / "client_app.py"), "small.yaml")
    message = Message(RecordDict(), 10, "query")
    with pytest.raises(ConfigurationError, match="--node-config 'partition-id=0'"):
        app(message, Context(1, 10, {}, RecordDict(), {}))
