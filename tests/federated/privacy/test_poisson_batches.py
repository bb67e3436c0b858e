"""Batches by coin flips."""

import math
from typing import Any

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.privacy.poisson_batches import PoissonBatches

DATA = TensorDataset(torch.arange(20.0).reshape(20, 1), torch.arange(20))


def drawn(loader: DataLoader[Any], passes: int = 1, seed: int = 0) -> list[list[int]]:
    torch.manual_seed(seed)
    batches = PoissonBatches(loader)
    return [labels.tolist() for _ in range(passes) for _, labels in batches]


def test_as_many_batches_as_the_loader_and_as_large_on_average() -> None:
    loader = DataLoader(DATA, 6, shuffle=True)
    batches = PoissonBatches(loader)
    assert len(batches) == len(loader) == 4
    assert (batches.rate, batches.expected) == (0.3, 6.0)
    found = drawn(loader, passes=500)
    assert len(found) == 2000
    assert sum(map(len, found)) / 2000 == pytest.approx(6, abs=4 * math.sqrt(20 * 0.3 * 0.7 / 2000))


def test_each_example_by_a_coin_flip_of_its_own() -> None:
    found = drawn(DataLoader(DATA, 6), passes=1000)
    limit = 4 * math.sqrt(0.3 * 0.7 / len(found))
    for one in range(20):
        assert sum(one in batch for batch in found) / len(found) == pytest.approx(0.3, abs=limit)
    both = sum(0 in batch and 1 in batch for batch in found) / len(found)
    assert both == pytest.approx(0.09, abs=limit)
    assert all(len(set(batch)) == len(batch) for batch in found)
    sizes = [len(batch) for batch in found]
    assert torch.tensor(sizes).double().var().item() == pytest.approx(20 * 0.3 * 0.7, rel=0.15)


def test_an_empty_batch_has_the_form_of_a_batch() -> None:
    torch.manual_seed(0)
    empty = [batch for _ in range(30) for batch in PoissonBatches(DataLoader(DATA, 1)) if not len(batch[0])]
    assert empty
    assert all((inputs.shape, labels.shape) == ((0, 1), (0,)) for inputs, labels in empty)


def test_the_seed_decides() -> None:
    assert drawn(DataLoader(DATA, 6), seed=3) == drawn(DataLoader(DATA, 6, shuffle=True), seed=3)
    assert drawn(DataLoader(DATA, 6), seed=3) != drawn(DataLoader(DATA, 6), seed=4)


def test_fewer_examples_than_a_batch_are_all_drawn() -> None:
    batches = PoissonBatches(DataLoader(DATA, 64))
    assert (batches.rate, batches.expected) == (1.0, 20.0)
    assert drawn(DataLoader(DATA, 64)) == [list(range(20))]


def test_only_the_clients_own_examples_of_a_shared_dataset() -> None:
    loader = DataLoader(DATA, 4, sampler=SubsetRandomSampler([3, 5, 7, 9, 11, 13, 15, 17]))
    assert PoissonBatches(loader).rate == 0.5
    assert {one for batch in drawn(loader, passes=50) for one in batch} == {3, 5, 7, 9, 11, 13, 15, 17}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(DATA)

    def __len__(self) -> int:
        return len(DATA)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), 4),
        DataLoader(DATA, 4, sampler=WeightedRandomSampler([1.0] * 20, 20)),
        DataLoader(DATA, 4, sampler=RandomSampler(DATA, replacement=True)),
        DataLoader(DATA, batch_sampler=[[0, 1], [2, 3]]),
        [DATA[0]],
    ],
    ids=["a stream", "weights", "with replacement", "batches of its own", "a list"],
)
def test_loaders_that_decide_themselves(loader: Any) -> None:
    with pytest.raises(ConfigurationError, match="return a DataLoader with a batch_size over a map-style dataset"):
        PoissonBatches(loader)
