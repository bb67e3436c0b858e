"""Sizes: of few clients all are asked before round 1, of many a sample, and others when they are drawn."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedhq_lightning.devices import Fleet
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.client_sizes import ClientSizes, SampledSizes, sizes_of
from fedhq_lightning.federated.privacy.mechanisms import LocalPrivacy
from fedhq_lightning.federated.secure.secure_aggregation import SecureAggregation
from fedhq_lightning.types import ClientId

from ..small_federation import SmallData, trainer

BILLION = range(10**9)


class Counted(SmallData):
    """Tells sizes by a function, and who was asked."""

    def __init__(self, count: Callable[[int], Any]) -> None:
        super().__init__()
        self.count = count
        self.asked: list[int] = []

    def num_examples(self, client_id: ClientId) -> Any:
        self.asked.append(int(client_id))
        return self.count(int(client_id))


def test_few_are_all_asked_once() -> None:
    data = Counted((3, 0, 1, 0, 9).__getitem__)
    sizes = ClientSizes(data, range(5))
    assert sizes.all() == [sizes.of(position) for position in range(5)] == [3, 0, 1, 0, 9]
    assert data.asked == [0, 1, 2, 3, 4]
    assert (sizes.empty, list(sizes.looked_at), sizes.typical, sizes.total) == ({1, 3}, [0, 2, 4], 3, 13)
    assert sizes.holds is None
    with pytest.warns(UserWarning, match="2 of 5 clients hold no examples and are left out: 1, 3"):
        sizes.tell_of_empty()


def test_a_thousand_stand_for_a_billion() -> None:
    data = Counted(lambda client_id: client_id % 5)
    sizes = SampledSizes(data, BILLION)
    assert len(data.asked) == len(set(data.asked)) == 1000
    assert data.asked == sorted(data.asked)
    assert sizes.looked_at == [each for each in data.asked if each % 5]
    assert sizes.typical == pytest.approx(2.5, abs=0.5)
    assert sizes.total == pytest.approx(2e9, rel=0.15)
    assert sizes.empty == frozenset()


def test_who_is_drawn_is_asked_once() -> None:
    data = Counted(lambda client_id: client_id % 2)
    sizes = SampledSizes(data, BILLION)
    assert sizes.holds is not None
    before = len(data.asked)
    assert [sizes.holds(position) for position in (123_457, 123_458, 123_457)] == [True, False, True]
    data.count = lambda client_id: 1000  # a larger weight, of its own choice
    assert sizes.of(123_457) == 1
    assert data.asked[before:] == [123_457, 123_458]


def test_it_does_not_matter_when_one_is_asked() -> None:
    data = Counted(lambda client_id: 1 + random.randrange(100) + int(torch.randint(100, ())))
    positions = (77, 200_003)
    first, second = (SampledSizes(data, BILLION) for _ in range(2))
    state = torch.get_rng_state()
    forwards = [first.of(position) for position in positions]
    assert torch.get_rng_state().equal(state)
    torch.rand(3)
    assert [second.of(position) for position in reversed(positions)] == forwards[::-1]


def test_nobody_in_the_sample_holds_any() -> None:
    with pytest.raises(ConfigurationError, match="1,000 of 1,000,000,000 clients were looked at, and hold no examples"):
        SampledSizes(Counted(lambda client_id: 0), BILLION)


def test_some_of_the_sample_hold_none() -> None:
    sizes = SampledSizes(Counted(lambda client_id: client_id % 4), range(4004))
    with pytest.warns(UserWarning, match=r"\d+ of 1,000 clients that were looked at hold no examples.*the 4,004"):
        sizes.tell_of_empty()


@pytest.mark.parametrize(
    ("registered", "settings", "asks_all"),
    [
        (10_000, {"clients_per_round": 5}, True),
        (10_001, {"clients_per_round": 5}, False),
        (10_001, {}, True),
        (10_001, {"clients_per_round": 0.1}, True),
        (10_001, {"clients_per_round": 0.05}, False),
        (20_000, {"clients_per_round": 2000}, True),
        (10_001, {"clients_per_round": 5, "secure_aggregation": SecureAggregation(), "max_norm_ratio": None}, True),
        (10_001, {"clients_per_round": 5, "privacy": LocalPrivacy(1.0, 1.0, 1e-5)}, True),
    ],
)
def test_who_is_asked(registered: int, settings: dict[str, Any], asks_all: bool) -> None:
    data = Counted(lambda client_id: 1)
    sizes = sizes_of(trainer(**settings).settings, data, range(registered), Fleet.resolve("uniform", 0))
    assert isinstance(sizes, SampledSizes) is not asks_all
    assert len(data.asked) == (registered if asks_all else 1000)
