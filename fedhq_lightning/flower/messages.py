"""What server and nodes say to each other: a few words as JSON, and a payload of the package's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, TypeAlias

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.payload import PayloadError
from fedhq_lightning.risk.sensitivity import SensitivityMeasure
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.support.typed_json import parse_json
from fedhq_lightning.types import ClientId, Count, Mode

MOST_WORDS = 2**20
"""Characters of an answer's JSON that are read."""

Work: TypeAlias = Literal["fit", "statistics"]


@dataclass(frozen=True)
class Order:
    """What one client is asked to do with the model that comes along.

    Attributes:
        work: "fit": train, and send the update; "statistics": take batch statistics.
        round: Number of the round.
        client_id: The client.
        fixed: Digest of what no round changes, which does not travel: every node has it from the recipe.
        mode: How it trains.
        learning_rate_scale: Factor on every learning rate.
        share: Of its local steps.
        sensitivity: What it measures for the allocator before it trains; None for nothing.
        run: What `RunName.unique` tells of the run, by which a node finds what its client has kept in it; empty where
            clients keep nothing.
        last: The last round in which an update of the client's came, 0 for none: what it kept later is not to be used.
        saved: Rounds that the run may go on from, so what was kept until then may be asked for again.
    """

    work: Work
    round: Count
    client_id: ClientId
    fixed: str
    mode: Mode = "fp"
    learning_rate_scale: float = 1.0
    share: float = 1.0
    sensitivity: SensitivityMeasure | None = None
    run: str = ""
    last: Count = 0
    saved: tuple[Count, ...] = ()

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str) -> Order:
        """What `to_text` wrote.

        Raises:
            ConfigurationError: It is no order.
        """
        return parse_json(text, cls)


@dataclass(frozen=True)
class Answer:
    """What a client says; what it made goes along as a payload.

    Attributes:
        record: Of its local fit; its seconds, but for `fit_wall_seconds`, and its examples are not looked at.
        failure: Why it could not do what it was asked for; empty where it could.
    """

    record: ClientRecord | None = None
    failure: str = ""

    def to_text(self) -> str:
        """As JSON."""
        record = None if self.record is None else self.record.to_json()
        return json.dumps({"record": record, "failure": self.failure})

    @classmethod
    def of_text(cls, text: str) -> Answer:
        """What `to_text` wrote.

        Raises:
            PayloadError: It is no answer.
        """
        if len(text) > MOST_WORDS:
            raise PayloadError(f"an answer of {len(text)} characters, {MOST_WORDS} at most are read")
        try:
            return parse_json(text, cls)
        except ConfigurationError as error:
            raise PayloadError(f"its answer cannot be read: {error}") from error


@dataclass(frozen=True)
class Reply:
    """What came back for an order, or did not.

    Attributes:
        text: JSON of an `Answer`.
        payload: What came along.
        seconds: Wall seconds from the order to the reply.
        missing: Why there is none; empty where there is one.
        is_late: Whether it had not come when the time was over.
    """

    text: str = ""
    payload: bytes = b""
    seconds: float = 0.0
    missing: str = ""
    is_late: bool = False


class Nodes(Protocol):
    """The nodes that clients are on."""

    def join(self, client_ids: Sequence[ClientId], needed: Sequence[ClientId]) -> None:
        """Wait, before round 1, until clients have a node.

        Args:
            client_ids: All of them, in the order of the recipe's data.
            needed: Those that hold data.
        """

    def ask(self, orders: Sequence[Order], payload: bytes) -> Iterator[tuple[ClientId, Reply]]:
        """Send every order, each with the same payload, to its client's node; one reply an order, as they come.

        Args:
            orders: One a client.
            payload: The model.
        """
