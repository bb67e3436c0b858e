"""What is asked of the clients before round 1."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.clients import (
    check_last_batches,
    client_sizes,
    client_to_probe,
    num_examples,
    plain_client_ids,
    warn_of_examples_never_drawn,
)
from fedhq_lightning.types import ClientId, FitOptions

from ..small_federation import SmallData, examples


class Drops(SmallData):
    def train_dataloader(self, client_id: ClientId) -> Any:
        return DataLoader(self.dataset(client_id), self.batch_size, drop_last=True)


class Counts(SmallData):
    """Tells sizes by a function, for as many clients as there are."""

    def __init__(self, count: Callable[[ClientId], Any]) -> None:
        super().__init__()
        self.count = count
        self.asked: list[ClientId] = []

    def num_examples(self, client_id: ClientId) -> Any:
        self.asked.append(client_id)
        return self.count(client_id)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(examples(8, 1))


class Streams(SmallData):
    def train_dataloader(self, client_id: ClientId) -> Any:
        return DataLoader(Stream(), 4)


@pytest.mark.parametrize("ids", [np.arange(3), np.array(["a", "b"]), [np.int16(4), 5], ("x", 1), ["é"], "ab"])
def test_ids_become_plain(ids: Any) -> None:
    plain = plain_client_ids(ids)
    assert list(plain) == list(ids)
    assert all(type(each) in (int, str) for each in plain)


def test_a_range_stays_one() -> None:
    ids = range(1_000_000)
    assert plain_client_ids(ids) is ids


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (("a", "b", "a"), "client_ids: 'a' is there twice"),
        (np.array([1, 1]), "1 is there twice"),
        ([True, False], "True is a bool"),
        ([1.0, 2.0], "1.0 is a float"),
        ([0, None], "None is a NoneType"),
        (torch.arange(2), "is a Tensor; .* int or str"),
    ],
)
def test_ids_that_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plain_client_ids(ids)


@pytest.mark.parametrize("given", [7, np.int64(7), torch.tensor(7)])
def test_counts_become_plain(given: Any) -> None:
    found = num_examples(Counts(lambda client_id: given), 0)
    assert found == 7
    assert type(found) is int


@pytest.mark.parametrize("given", [7.0, -1, None, "7"])
def test_counts_that_are_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"num_examples\('a'\) is {given!r}; .* whole number"):
        num_examples(Counts(lambda client_id: given), "a")


def test_client_sizes() -> None:
    data = SmallData({"a": 3, "b": 0, "c": 1, "d": 0})
    assert client_sizes(data, data.client_ids).tolist() == list(data.sizes.values())


def test_the_largest_client_is_probed() -> None:
    assert client_to_probe(SmallData((3, 30, 8, 30)), range(4)) == 1


def test_only_the_first_ten_thousand_are_looked_at() -> None:
    data = Counts(lambda client_id: 1 + int(client_id))
    data.train_dataloader = lambda client_id: [client_id]  # type: ignore[method-assign, assignment, return-value]  # cheap
    assert client_to_probe(data, range(1_000_000)) == 9_999
    assert max(map(int, data.asked)) == 9_999


def test_a_client_without_a_batch_is_not_probed() -> None:
    assert client_to_probe(Drops((3, 8, 5)), range(3)) == 1

    class LargeBatches(Drops):
        def train_dataloader(self, client_id: ClientId) -> Any:
            return DataLoader(self.dataset(client_id), 32 if client_id == 0 else 8, drop_last=True)

    assert client_to_probe(LargeBatches((20, 9)), range(2)) == 1


def test_no_client_has_a_batch() -> None:
    with pytest.raises(ConfigurationError, match=r"no client's training loader gives a batch.* 5 examples.*drop_last"):
        client_to_probe(Drops((3, 5)), range(2))


def test_loaders_without_length() -> None:
    with pytest.raises(ConfigurationError, match=r"client 0: Stream does not tell how many .* map-style"):
        num_examples(Streams(), 0)
    streams = Streams()
    streams.num_examples = lambda client_id: 8  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match=r"client 0: its training loader has no length \(.*Stream.*map-style"):
        client_to_probe(streams, range(2))


@pytest.mark.parametrize(
    ("shuffles", "options", "is_told"),
    [
        (False, FitOptions(local_steps=2), True),
        (False, FitOptions(local_steps=1, accumulate_grad_batches=2), True),
        (False, FitOptions(local_steps=3), False),
        (False, FitOptions(local_epochs=1), False),
        (True, FitOptions(local_steps=2), False),
    ],
)
def test_batches_that_are_never_drawn_are_told(
    shuffles: bool, options: FitOptions, is_told: bool, recwarn: pytest.WarningsRecorder
) -> None:
    class Ordered(SmallData):
        def train_dataloader(self, client_id: ClientId) -> Any:
            return DataLoader(self.dataset(client_id), 8, shuffle=shuffles)

    warn_of_examples_never_drawn(Ordered((20,)), 0, options)
    said = [str(each.message) for each in recwarn]
    assert len(said) == is_told
    assert not said or "ends after 2 of 3 batches, so the others are never trained on" in said[0]


class TestLastBatches:
    """A last batch of one example and a BatchNorm that cannot train on it."""

    @staticmethod
    def check(data: SmallData, batch_norm: str | None = "net.1", ids: Sequence[int] = range(3), **options: Any) -> None:
        check_last_batches(data, ids, 8, batch_norm, FitOptions(**options))

    @pytest.mark.parametrize("size", [1, 9, 17])
    def test_refused_by_name(self, size: int) -> None:
        with pytest.raises(
            ConfigurationError,
            match=rf"client 1 holds {size} examples in batches of 8: .* net\.1 .*drop_last=True.*another batch_size",
        ):
            self.check(SmallData((16, size, 9)))

    def test_harmless(self) -> None:
        self.check(SmallData((16, 10, 15)))
        self.check(SmallData((16, 9, 15)), batch_norm=None)
        self.check(Drops((16, 9, 15)))

    def test_a_last_batch_that_is_never_reached(self) -> None:
        self.check(SmallData((16, 17, 16)), local_epochs=None, local_steps=2)
        self.check(SmallData((16, 33, 16)), local_epochs=None, local_steps=2, accumulate_grad_batches=2)
        with pytest.raises(ConfigurationError, match="client 1"):
            self.check(SmallData((16, 17, 16)), local_epochs=None, local_steps=3)

    def test_only_the_first_ten_thousand_are_looked_at(self) -> None:
        self.check(Counts(lambda client_id: 9 if client_id == 10_000 else 8), ids=range(20_000))
