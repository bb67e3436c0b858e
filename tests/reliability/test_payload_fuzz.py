"""Payloads damaged on the way, and payloads that hostile clients sealed themselves: refused in a sentence, at once."""

from __future__ import annotations

import pytest
import torch

from fedhq_lightning.federated.algorithms import FedAvg
from fedhq_lightning.federated.payload import Header, PayloadError, _checksum, _head
from fedhq_lightning.federated.payload_layout import expected_layout, places_of
from fedhq_lightning.federated.server import Server, ServerRound
from fedhq_lightning.federated.wire import Link, Uplink
from fedhq_lightning.models import MLP
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import StateDict

from ..mutations import attacked
from ..small_federation import same_bits

CLIENT = "hospital-7"
MOST_MEGABYTES = 2
"""A payload here has one kilobyte."""
FAST, SLOW = 1500, 60_000


class Federation:
    """A server, and what an honest client sends it."""

    def __init__(self, uplink: Uplink, scheme: str | None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = MLP(image_size=4, hidden_sizes=(8,), num_classes=3)
            module.register_buffer("running_var", torch.ones(4))
            self.state: StateDict = {name: value.detach() for name, value in module.state_dict().items()}
            local = {name: value + 0.01 * torch.randn_like(value) for name, value in self.state.items()}
            others = [
                {name: value + 0.01 * torch.randn_like(value) for name, value in self.state.items()} for _ in range(3)
            ]
        layers = {} if scheme is None else QuantScheme.parse(scheme).for_layers(module)
        self.grids = {f"{name}.weight": grid for name, grid in layers.items()}
        self.link = Link(self.state, self.grids, uplink, "fp32")
        names = frozenset(self.state) - {"running_var"}
        self.server = Server(self.link, FedAvg(), names, Processes(None), max_norm_ratio=20)
        self.payload = self.link.up(local, self.state, 1, CLIENT)
        self.others = [self.link.up(each, self.state, 1, number) for number, each in enumerate(others)]
        self.without = self.round().close().state

    def round(self) -> ServerRound:
        """One in which three honest clients have sent their updates."""
        at_server = ServerRound(self.server, 1, self.state, self.state)
        for number, payload in enumerate(self.others):
            at_server.receive(number, payload, 10)
        return at_server

    def open(self, payload: bytes) -> None:
        """Only the very bytes of the honest client are read."""
        self.link.open(payload, 1, CLIENT)
        assert payload == self.payload, "damaged, and read"

    def receive(self, data: bytes) -> None:
        """What a client sends that seals whatever data it likes: the model stays one of finite numbers all the same."""
        at_server = self.round()
        at_server.receive(CLIENT, sealed(self, data), 10)
        found = at_server.close()
        assert all(bool(value.isfinite().all()) for value in found.state.values())
        assert bool((found.state["running_var"] >= -1e-6).all())
        for reason in found.refused.values():
            assert len(reason) <= 200
            assert reason.isprintable()
            assert same_bits(found.state, self.without), "what is refused moves nothing"
            raise PayloadError(reason)


def sealed(there: Federation, data: bytes) -> bytes:
    """A payload with these data and a header that says the truth about them."""
    places = places_of(expected_layout(there.state, there.grids))
    kind = there.link.uplink
    return _head(places, Header(kind, 1, CLIENT).metadata(), _checksum(places.text, [memoryview(data)])) + data


@pytest.mark.parametrize("count", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_damaged_payloads_are_refused(count: int) -> None:
    there = Federation("delta", "w4a8")
    tally = attacked(there.open, [there.payload], range(count), errors=(PayloadError,), most_megabytes=MOST_MEGABYTES)
    assert tally == {"refused": count}


@pytest.mark.parametrize(("uplink", "scheme"), [("delta", "w4a8"), ("weights", "w8a8"), ("delta", None)])
@pytest.mark.parametrize("count", [FAST // 3, pytest.param(SLOW // 3, marks=pytest.mark.slow)])
def test_hostile_values_move_nothing_out_of_bounds(count: int, uplink: Uplink, scheme: str | None) -> None:
    there = Federation(uplink, scheme)
    data = there.payload[8 + int.from_bytes(there.payload[:8], "little") :]
    tally = attacked(there.receive, [data], range(count), errors=(PayloadError,), most_megabytes=MOST_MEGABYTES)
    assert tally["read"] > count / 100
    assert tally["refused"] > count / 10
