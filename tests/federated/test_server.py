"""The server's step, as rounds and silos take it: what counts, what is left out, and what its sockets see."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedhq_lightning.federated.algorithms import FedAvg
from fedhq_lightning.federated.held_updates import HeldUpdates
from fedhq_lightning.federated.payload import PayloadError
from fedhq_lightning.federated.server import Aggregated, Server, ServerRound
from fedhq_lightning.federated.update_checks import Norms
from fedhq_lightning.federated.update_directions import sketcher_of
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import ClientId, StateDict

from ..small_federation import same_bits

GLOBAL: StateDict = {"weight": torch.linspace(-1, 1, 12).reshape(3, 4), "steps": torch.tensor(7)}
LINK = Link(GLOBAL, {}, "weights", "fp32")


def server(**sockets: Any) -> Server:
    return Server(LINK, FedAvg(), frozenset({"weight"}), Processes(None), **sockets)


def payload(of: ClientId, by: float, round_number: int = 1) -> bytes:
    """What a client sends that has moved every weight by as much."""
    return LINK.up(GLOBAL | {"weight": GLOBAL["weight"] + by}, GLOBAL, round_number, of)


def step(at_server: ServerRound, moved: Mapping[ClientId, float], examples: int = 3) -> Aggregated:
    for client_id, by in moved.items():
        at_server.receive(client_id, payload(client_id, by), examples)
    return at_server.close()


def test_the_step_is_the_weighted_mean_and_leaves_the_rest() -> None:
    at_server = server().open_round(1, GLOBAL)
    assert at_server.downlink_bytes > 0
    assert same_bits(at_server.received, GLOBAL)
    at_server.receive("a", payload("a", 0.5), 1)
    at_server.receive("b", payload("b", -0.5), 3)
    found = at_server.close()
    assert (found.total_weight, dict(found.refused)) == (4, {})
    torch.testing.assert_close(found.state["weight"], GLOBAL["weight"] - 0.25)
    assert found.state["steps"] == 7


def test_who_comes_first_changes_no_bit() -> None:
    moved = {0: 0.1, 1: -3e-7, 2: 1e5, 3: 0.7}
    one = step(server().open_round(1, GLOBAL), moved)
    other = step(server().open_round(1, GLOBAL), dict(reversed(moved.items())))
    assert same_bits(one.state, other.state)


@pytest.mark.parametrize(
    ("sent", "examples", "words"),
    [
        (b"", 3, "header"),
        (payload("b", 0.5), 3, "client is"),
        (payload("a", 0.5, round_number=2), 3, "round is"),
        (payload("a", float("nan")), 3, "not finite"),
        (payload("a", 1e12), 3, "magnitude"),
        (payload("a", 0.5), 2**29 + 1, "weight"),
        (payload("a", 0.5), 0, "it saw no example in this round"),
        (payload("a", 1e25), 3, "magnitude"),
    ],
)
def test_what_fails_a_check_is_left_out_with_its_reason(sent: bytes, examples: int, words: str) -> None:
    at_server = server().open_round(1, GLOBAL)
    at_server.receive("a", sent, examples)
    found = step(at_server, {"c": 0.5})
    assert list(found.refused) == ["a"]
    assert words in found.refused["a"]
    assert same_bits(found.state, step(server().open_round(1, GLOBAL), {"c": 0.5}).state)


@pytest.mark.parametrize("uplink", ["weights", "delta"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 3e38, 1e12])
def test_whoever_else_looks_at_an_update_changes_nothing(uplink: Any, value: float | None) -> None:
    """Neither the sum nor why an update is refused; with nobody else, it goes from payload to sum."""
    grids = {"weight": LayerScheme(4, 8, None)}
    link = Link(GLOBAL, grids, uplink, "fp32")
    alone = Server(link, FedAvg(), frozenset({"weight"}), Processes(None))
    found = []
    for each in (
        alone,
        replace(alone, transforms=(lambda _, update: update,)),
        replace(alone, sketcher=sketcher_of(0)),
    ):
        at_server = each.open_round(1, GLOBAL)
        for client_id in range(3):
            local = GLOBAL | {"weight": GLOBAL["weight"] * (client_id + 2)}
            if client_id == 1 and value is not None:
                local["weight"][0, 1] = value
            at_server.receive(client_id, link.up(local, at_server.received, 1, client_id), client_id + 1)
        found.append(at_server.close())
    for other in found[1:]:
        assert same_bits(other.state, found[0].state)
        assert other.refused == found[0].refused
    assert list(found[0].refused) == ([] if value is None else [1])


def test_without_any_update_the_model_stays() -> None:
    found = server(sketcher=sketcher_of(0)).open_round(1, GLOBAL).close()
    assert (found.total_weight, dict(found.divergences)) == (0, {})
    assert same_bits(found.state, GLOBAL)


def test_transforms_see_each_decoded_update_in_their_order() -> None:
    seen: list[tuple[str, ClientId, float]] = []

    def halve(client_id: ClientId, update: StateDict) -> StateDict:
        seen.append(("halve", client_id, float(update["weight"].mean())))
        return {name: value / 2 for name, value in update.items()}

    def raised(client_id: ClientId, update: StateDict) -> StateDict:
        seen.append(("raise", client_id, float(update["weight"].mean())))
        return {name: value + 1 for name, value in update.items()}

    found = step(server(transforms=(halve, raised)).open_round(1, GLOBAL), {"a": 0.5})
    assert [(name, client_id) for name, client_id, _ in seen] == [("halve", "a"), ("raise", "a")]
    assert [mean for _, _, mean in seen] == pytest.approx([0.5, 0.25])
    torch.testing.assert_close(found.state["weight"], (GLOBAL["weight"] + 0.5) / 2 + 1)


def test_a_transform_may_refuse_an_update() -> None:
    def refuse(client_id: ClientId, update: StateDict) -> StateDict:
        raise ValueError(f"{client_id} is not trusted")

    at_server = server(transforms=(refuse,)).open_round(1, GLOBAL)
    at_server.receive("a", payload("a", 0.5), 3)
    found = at_server.close()
    assert (found.total_weight, dict(found.refused)) == (0, {"a": "a is not trusted"})


class Median:
    """A rule that needs all updates at once."""

    def __init__(self, bases: Mapping[str, Tensor] | None) -> None:
        assert bases is not None  # updates are models
        self.updates: list[Mapping[str, Tensor]] = []
        self.weight = 0

    def add(self, state: Mapping[str, Tensor], weight: int) -> None:
        self.updates.append(state)
        self.weight += weight

    def mean(self, processes: Processes) -> tuple[StateDict, int]:
        names = self.updates[0] if self.updates else {}
        return {
            name: torch.stack([each[name] for each in self.updates]).median(0).values for name in names
        }, self.weight


def test_another_accumulator_takes_the_place_of_the_mean() -> None:
    found = step(server(accumulator=Median).open_round(1, GLOBAL), {0: 0.25, 1: 0.5, 2: 1e6})
    torch.testing.assert_close(found.state["weight"], GLOBAL["weight"] + 0.5)


def test_directions_are_found_where_a_sketcher_is_given() -> None:
    moved = {"a": 0.5, "b": 0.5, "c": -0.25}
    assert step(server().open_round(1, GLOBAL), moved).divergences == {}
    found = step(server(sketcher=sketcher_of(0)).open_round(1, GLOBAL), moved).divergences
    assert found["a"] == pytest.approx(0, abs=1e-6)
    assert found["c"] == pytest.approx(2, abs=1e-6)


class TestNorms:
    """Weights are 12 numbers, all moved by as much: the norm is that times the root of 12."""

    def test_far_beyond_the_median_does_not_count(self) -> None:
        honest = {"b": 0.5, "c": 0.4, "d": 0.3, "e": 0.2}
        for at, moved in enumerate((5.0, -5.0, 100.0, 1e9)):
            given = [*honest.items()]
            given.insert(at, ("a", moved))  # whoever comes when
            found = step(server(max_norm_ratio=10).open_round(1, GLOBAL), dict(given))
            assert list(found.refused) == ["a"]
            assert "it moves the parameters by a norm of" in found.refused["a"]
            assert same_bits(found.state, step(server(max_norm_ratio=10).open_round(1, GLOBAL), honest).state)
            assert found.num_updates == 4

    def test_what_was_usual_lets_updates_go_before_the_others_have_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        held: list[ClientId] = []
        monkeypatch.setattr(HeldUpdates, "add", lambda self, update, payload: held.append(update.client_id))
        step(server(max_norm_ratio=10).open_round(1, GLOBAL), {"a": 1.0, "b": 2.0})
        assert held == ["a", "b"]
        held.clear()
        usual = Norms(1.0, 1.0)
        step(server(max_norm_ratio=10).open_round(2, GLOBAL, usual), {})
        at_server = server(max_norm_ratio=10).open_round(2, GLOBAL, usual)
        for client_id, moved in {"a": 2.0, "b": 2.8, "c": 3.0}.items():
            at_server.receive(client_id, payload(client_id, moved, round_number=2), 3)
        assert held == ["c"], "3 times the root of 12 is 10.4"

    @pytest.mark.parametrize("order", [1, -1])
    def test_waiting_changes_no_bit(self, order: int) -> None:
        moved = dict(list({0: 0.1, 1: -3e-7, 2: 2.0, 3: 0.7, 4: 0.3}.items())[::order])
        wanted = step(server().open_round(1, GLOBAL), moved)
        for usual in (None, Norms(0.5, 0.0), Norms(1e9, 0.0)):
            found = step(server(max_norm_ratio=20).open_round(1, GLOBAL, usual), moved)
            assert same_bits(found.state, wanted.state)
            assert not found.refused

    def test_many_examples_may_go_far(self) -> None:
        given: dict[ClientId, tuple[float, int]] = {"a": (30.0, 300), "b": (0.5, 3), "c": (0.5, 3), "d": (0.5, 1)}
        refused = []
        for typical in (3.0, float("inf")):
            at_server = server(max_norm_ratio=10, typical_examples=typical).open_round(1, GLOBAL)
            for client_id, (moved, examples) in given.items():
                at_server.receive(client_id, payload(client_id, moved), examples)
            refused.append(list(at_server.close().refused))
        assert refused == [[], ["a"]]


def test_a_client_counts_once() -> None:
    at_server = server().open_round(1, GLOBAL)
    at_server.receive("a", payload("a", 0.5), 3)
    for again in (payload("a", 0.5), b"", payload("a", 9.0)):
        with pytest.raises(PayloadError, match="client a has sent an update in round 1 before"):
            at_server.receive("a", again, 3)
    found = at_server.close()
    assert same_bits(found.state, step(server().open_round(1, GLOBAL), {"a": 0.5}).state)
    assert not found.refused


def test_a_client_claims_no_more_examples_than_it_can_have() -> None:
    at_server = server().open_round(1, GLOBAL)
    at_server.receive("a", payload("a", 0.5), 2**29, 100)
    at_server.receive("b", payload("b", 0.5), 100, 100)
    assert at_server.close().refused == {"a": "it claims 536870912 examples, and can have 100 at most"}


def test_too_few_updates_leave_the_model() -> None:
    for count in (0, 1, 2, 3):
        found = step(server(min_updates=3).open_round(1, GLOBAL), {number: 0.5 for number in range(count)})
        assert found.num_updates == count
        assert bool(found.total_weight) == (count == 3)
        assert same_bits(found.state, GLOBAL) == (count < 3)


def test_reasons_are_short_and_can_be_printed() -> None:
    at_server = server().open_round(1, GLOBAL)
    at_server.receive("a", LINK.up(GLOBAL, GLOBAL, 1, "\x1b[2J" + "x" * 300), 3)
    reason = at_server.close().refused["a"]
    assert len(reason) == 200
    assert reason.isprintable()
