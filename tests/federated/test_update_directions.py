"""A round's update directions against the vectors themselves."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.federated.update_directions import UpdateDirections, sketcher_of
from fedhq_lightning.federated.wire import Link, Uplink
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.risk import direction_divergence
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import StateDict

PARAMETERS = frozenset({"weight", "bias"})


def template() -> StateDict:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": nn.init.normal_(torch.empty(64, 128), std=0.1, generator=generator),
        "bias": torch.zeros(64),
        "running_mean": torch.zeros(64),
        "frozen": torch.ones(64),
    }


def locals_of(start: StateDict, num_clients: int = 6, scale: float = 0.02) -> list[StateDict]:
    """Clients that learned something in common and something of their own; the first only what is common."""
    generator = torch.Generator().manual_seed(1)

    def moves() -> StateDict:
        return {name: scale * torch.randn(start[name].shape, generator=generator) for name in PARAMETERS}

    common, clients = moves(), []
    for number in range(num_clients):
        own = moves()
        moved = {name: start[name] + common[name] + 0.6 * number * own[name] for name in sorted(PARAMETERS)}
        # Statistics far larger than any weight's change.
        clients.append(start | moved | {"running_mean": 100.0 * torch.randn(64, generator=generator)})
    return clients


def found(link: Link, start: StateDict, clients: list[StateDict], shares: list[list[int]]) -> dict[Any, float | None]:
    """What processes with these shares of the clients find, each for its own."""
    decoded = [link.receive(link.up(each, start, 1, number), 1, number) for number, each in enumerate(clients)]
    mean = ExactMean()
    for number, each in enumerate(decoded):
        mean.add(each, 10 + number)
    result: dict[Any, float | None] = {}
    of_all, _ = mean.mean(Processes(None))
    for share in shares:
        directions = UpdateDirections(link.uplink, sketcher_of(3), PARAMETERS, start)
        for number in share:
            directions.add(number, decoded[number])
        result |= directions.divergences(of_all)
    return result


def flat(state: StateDict, base: StateDict) -> Tensor:
    return torch.cat([(state[name].double() - base[name].double()).flatten() for name in sorted(PARAMETERS)])


@pytest.mark.parametrize("uplink", ["weights", "delta"])
@pytest.mark.parametrize("bits", [None, 8, 2])
def test_against_the_vectors_that_were_sent(uplink: Uplink, bits: int | None) -> None:
    start = template()
    grids = {} if bits is None else {"weight": LayerScheme(bits)}
    link, clients = Link(start, grids, uplink, "fp32", frozenset({"frozen"})), locals_of(start)
    base = start if link.uplink == "weights" else {name: torch.zeros_like(value) for name, value in start.items()}
    vectors = torch.stack([flat(link.receive(link.up(each, start, 1, 0), 1, 0), base) for each in clients])
    mean = (torch.arange(10.0, 16.0, dtype=torch.float64)[:, None] * vectors).sum(0) / 75
    divergences = found(link, start, clients, [list(range(6))])
    errors = [divergences[number] - direction_divergence(each, mean) for number, each in enumerate(vectors)]  # type: ignore[operator]  # no None among them
    assert max(map(abs, errors)) < 4 / math.sqrt(1024)
    if bits is None:  # moves in common, and more and more of its own
        unrounded = torch.stack([flat(each, start) for each in clients])
        torch.testing.assert_close(vectors, unrounded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("uplink", ["weights", "delta"])
def test_processes_and_order_do_not_matter(uplink: Uplink) -> None:
    start = template()
    link, clients = Link(start, {"weight": LayerScheme(3)}, uplink, "fp32"), locals_of(start)
    one = found(link, start, clients, [[0, 1, 2, 3, 4, 5]])
    assert one == found(link, start, clients, [[5, 2], [], [0, 4, 1], [3]])
    assert None not in one.values()
    assert len(set(one.values())) == 6


def test_one_client_is_its_own_mean_and_an_idle_one_has_no_direction() -> None:
    start = template()
    for uplink, grids in itertools.product(("weights", "delta"), ({}, {"weight": LayerScheme(4)})):
        link = Link(start, grids, uplink, "fp32")
        (moved,) = locals_of(start, 1)
        assert found(link, start, [moved], [[0]])[0] == pytest.approx(0.0, abs=1e-12)
        both = found(link, start, [moved, start], [[0, 1]])
        if uplink == "delta" or not grids:
            assert both[0] == pytest.approx(0.0, abs=1e-6)
            assert both[1] is None
        assert found(Link(start, {}, uplink, "fp32"), start, [start], [[0]]) == {0: None}
