"""The nodes of a Flower grid: which client is on which, and what they answer in time. Needs flwr."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from flwr.app import ConfigRecord, Message, RecordDict
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.flower import records
from fedhq_lightning.flower.messages import Order, Reply
from fedhq_lightning.support.text import shortened
from fedhq_lightning.types import ClientId

_LOOK_SECONDS = 0.2
"""Between two looks at what has come."""


@dataclass(frozen=True)
class WaitingTimes:
    """How long the server waits, in wall seconds.

    Attributes:
        join: Before round 1, for every client to have a node.
        reply: In a round, for what a node was asked for. Whoever answers later is late.
    """

    join: float = 300.0
    reply: float = 600.0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From the app's `join-seconds` and `reply-seconds`.

        Raises:
            ConfigurationError: One is not above 0.
        """
        found = {}
        for name in (each.name for each in fields(cls)):
            given = config.get(f"{name}-seconds", getattr(cls, name))
            if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
                raise ConfigurationError(f"{name}-seconds {given!r}: must be greater than 0")
            found[name] = float(given)
        return cls(**found)


class GridNodes:
    """See `Nodes`.

    Args:
        grid: Flower's `Grid`.
        times: How long to wait.
    """

    def __init__(self, grid: Any, times: WaitingTimes) -> None:
        self._grid = grid
        self._times = times
        self._clients: Sequence[ClientId] = ()
        self._place_of: dict[int, int] = {}
        self._asked: dict[str, int] = {}

    def join(self, client_ids: Sequence[ClientId], needed: Sequence[ClientId]) -> None:
        """Wait until clients have a node, or for as long as they may take.

        Args:
            client_ids: All of them, in the order of the recipe's data: a node's `partition-id` is a place in it.
            needed: Those that hold data.

        Raises:
            RunError: None has.
        """
        self._clients = client_ids
        until = time.monotonic() + self._times.join
        missing = set(needed) - self._node_of().keys()
        while missing and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            missing = set(needed) - self._node_of().keys()
        if len(missing) == len(needed):
            raise RunError(
                f"no client has a node after {self._times.join:g} s; start a SuperNode for each, with --node-config "
                "'partition-id=0' and so on"
            )
        if missing:
            names = ", ".join(map(str, sorted(missing, key=client_ids.index)[:5]))
            rank_zero_warn(
                f"{len(missing)} of {len(needed)} clients have no node yet: {names}; the run begins without them"
            )

    def ask(self, orders: Sequence[Order], payload: bytes) -> Iterator[tuple[ClientId, Reply]]:
        """See `Nodes`; a node that has come since the last time is asked too."""
        node_of, began = self._node_of(), time.monotonic()
        here = [order for order in orders if order.client_id in node_of]
        for order in orders:
            if order.client_id not in node_of:
                yield order.client_id, Reply(missing="it has no node")
        group = str(orders[0].round) if orders else ""
        messages = [
            Message(records.of(order.to_text(), payload), node_of[order.client_id], "train", group_id=group)
            for order in here
        ]
        pushed = list(self._grid.push_messages(messages)) if messages else []
        waiting = {}
        for order, message_id in zip(here, pushed, strict=True):
            if message_id is None:
                yield order.client_id, Reply(missing="its node did not take the message")
            else:
                waiting[message_id] = order.client_id
        for message in self._come(waiting, began + self._times.reply):
            yield waiting.pop(message.metadata.reply_to_message_id), _reply_in(message, time.monotonic() - began)
        for client_id in waiting.values():
            yield client_id, Reply(missing=f"no answer within {self._times.reply:g} s", is_late=True)

    def _come(self, waiting: Mapping[str, Any], until: float) -> Iterator[Message]:
        """Replies as they come, until there is one to each or the time is over."""
        while waiting:
            yield from [each for each in self._pull(list(waiting)) if each.metadata.reply_to_message_id in waiting]
            if time.monotonic() > until:
                return
            time.sleep(_LOOK_SECONDS)

    def _pull(self, message_ids: list[str]) -> Iterable[Message]:
        found: Iterable[Message] = self._grid.pull_messages(message_ids)
        return found

    def _node_of(self) -> dict[ClientId, int]:
        """The node of every client that has one: of several, the one that came last."""
        present = set(self._grid.get_node_ids())
        self._ask_who(sorted(present - self._place_of.keys() - set(self._asked.values())))
        for message in self._pull(list(self._asked)) if self._asked else ():
            node_id = self._asked.pop(message.metadata.reply_to_message_id, None)
            place = None if node_id is None or message.has_error() else records.place_in(message.content)
            if node_id is not None and place is not None:
                self._place_of.pop(node_id, None)
                self._place_of[node_id] = place
        return {
            self._clients[place]: node_id
            for node_id, place in self._place_of.items()
            if node_id in present and 0 <= place < len(self._clients)
        }

    def _ask_who(self, node_ids: Sequence[int]) -> None:
        if node_ids:
            nothing = RecordDict({"fedhq.who": ConfigRecord({})})
            messages = [Message(nothing, node_id, "query") for node_id in node_ids]
            for node_id, message_id in zip(node_ids, self._grid.push_messages(messages), strict=True):
                if message_id is not None:
                    self._asked[message_id] = node_id


def _reply_in(message: Message, seconds: float) -> Reply:
    if message.has_error():
        return Reply(missing=shortened(f"its node failed: {message.error.reason or message.error.code}"))
    try:
        text, payload = records.opened(message.content)
    except (ValueError, AttributeError) as error:
        return Reply(missing=shortened(f"its answer cannot be read: {error}"))
    return Reply(text, payload, seconds)
