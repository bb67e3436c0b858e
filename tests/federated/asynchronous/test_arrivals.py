"""Who comes first."""

from dataclasses import replace

from fedhq_lightning.federated.asynchronous.arrivals import InFlight, first_arrivals
from fedhq_lightning.testing.made_rounds import made_context, made_record
from fedhq_lightning.types import Plan


def flying(position: int, arrives: float, status: str = "ok") -> InFlight:
    (record,) = made_record(1, Plan({position: "fp"}), made_context(range(9), 1)).clients
    return InFlight(position, arrives, replace(record, status=status))  # type: ignore[arg-type]


def test_the_first_in_time_come_first_and_at_once_by_position() -> None:
    everyone = [flying(3, 2.0), flying(1, 1.0), flying(2, 2.0), flying(0, 5.0)]
    for order in (everyone, everyone[::-1]):
        arrived, rest = first_arrivals(order, 2)
        assert [each.position for each in arrived] == [1, 2]
        assert [each.position for each in rest] == [3, 0]


def test_who_sends_nothing_comes_too_and_is_not_counted() -> None:
    arrived, rest = first_arrivals([flying(0, 1.0, "idle"), flying(1, 2.0), flying(2, 3.0, "quarantined")], 1)
    assert [each.position for each in arrived] == [0, 1]
    assert [each.position for each in rest] == [2]


def test_where_fewer_are_on_their_way_all_come() -> None:
    assert first_arrivals([flying(0, 1.0)], 3) == ([flying(0, 1.0)], [])
    assert first_arrivals([], 3) == ([], [])


def test_through_plain_values() -> None:
    one = flying(4, 2.5)
    assert InFlight.from_plain(one.to_plain()) == one
    assert (one.arrived_in(6).round, one.arrived_in(6).staleness) == (6, 5)
