"""Which updates a step of the server takes: those that come first in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from fedhq_lightning.run.records import ClientRecord


@dataclass(frozen=True)
class InFlight:
    """A client that trains, or whose update is on its way.

    Attributes:
        position: Of the client among all.
        arrives: Virtual seconds since the start of the run at which its update is there.
        record: Of its fit; its round is the one whose model it began with.
    """

    position: int
    arrives: float
    record: ClientRecord

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for checkpoints and other processes."""
        return {"position": self.position, "arrives": self.arrives, "record": self.record.to_json()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """What `to_plain` gave.

        Raises:
            ConfigurationError: A field of the record is missing, or of another type.
        """
        return cls(plain["position"], plain["arrives"], ClientRecord.from_json(plain["record"]))

    def arrived_in(self, round_number: int) -> ClientRecord:
        """The record of a client whose update is taken in a round."""
        return replace(self.record, round=round_number, staleness=round_number - self.record.round)


def first_arrivals(in_flight: Sequence[InFlight], count: int) -> tuple[list[InFlight], list[InFlight]]:
    """Who has come when so many updates are there, and who has not.

    Clients that send nothing come too, and are not counted. Where fewer updates are on their way, all have come.

    Args:
        in_flight: All of them, in any order.
        count: Updates, 1 or more.

    Returns:
        Those who have come, in the order of their arrival, clients that arrive at once by their positions; the others.
    """
    in_order = sorted(in_flight, key=lambda each: (each.arrives, each.position))
    num_updates = 0
    for index, each in enumerate(in_order, start=1):
        num_updates += each.record.status == "ok"
        if num_updates == count:
            return in_order[:index], in_order[index:]
    return in_order, []
