"""Batches taken as a whole are those that the DataLoader gives: bits, memory layout, order and random numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fedhq_lightning.data.client_loaders import ClientExamples
from fedhq_lightning.data.images import ImageBatch, ImageTensors, collate_images
from fedhq_lightning.data.whole_batches import batches_of

NUM_EXAMPLES = 23
DATA = TensorDataset(torch.randn(NUM_EXAMPLES, 3, 5), torch.arange(NUM_EXAMPLES))
PIXELS = torch.randint(256, (NUM_EXAMPLES, 3, 4, 4), dtype=torch.uint8)
IMAGES = ImageTensors(PIXELS, DATA.tensors[1], (3.0, 4.0, 5.0), 7.0)


class Jumping(Sampler[int]):
    """Rows from both ends, some twice, chosen with torch's global random numbers as it goes."""

    def __iter__(self) -> Iterator[int]:
        for row in (3, -1, 3, -5, 0):
            yield row
            yield int(torch.randint(NUM_EXAMPLES, ()))

    def __len__(self) -> int:
        return 10


class TensorRows(Sampler[Any]):
    """Row numbers as tensors."""

    def __iter__(self) -> Iterator[Any]:
        return iter(torch.randperm(NUM_EXAMPLES))

    def __len__(self) -> int:
        return NUM_EXAMPLES


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": lambda: DataLoader(DATA, 4),
    "shuffled": lambda: DataLoader(DATA, 4, shuffle=True),
    "drop_last": lambda: DataLoader(DATA, 4, shuffle=True, drop_last=True),
    "one batch": lambda: DataLoader(DATA, 100, shuffle=True),
    "a generator": lambda: DataLoader(DATA, 4, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "a sampler's generator": lambda: DataLoader(
        DATA, 4, sampler=RandomSampler(DATA, generator=torch.Generator().manual_seed(5))
    ),
    "with replacement": lambda: DataLoader(DATA, 4, sampler=RandomSampler(DATA, replacement=True, num_samples=70)),
    "chosen rows": lambda: DataLoader(DATA, 4, sampler=SubsetRandomSampler(range(3, 17))),
    "weights": lambda: DataLoader(DATA, 4, sampler=WeightedRandomSampler(torch.rand(NUM_EXAMPLES).tolist(), 11)),
    "a sampler of one's own": lambda: DataLoader(DATA, 4, sampler=Jumping()),
    "rows as tensors": lambda: DataLoader(DATA, 4, sampler=TensorRows()),
    "a batch sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, drop_last=False)),
    "batches of one's own": lambda: DataLoader(DATA, batch_sampler=[(1, 2), (5,), (-1, 7, 7)]),
    "a subset": lambda: DataLoader(Subset(DATA, [5, -2, 5, 0, 9]), 2, shuffle=True),
    "subsets by array and tensor": lambda: DataLoader(
        Subset(Subset(DATA, np.arange(20)), torch.arange(15)), 4, shuffle=True
    ),
    "a client's": lambda: DataLoader(ClientExamples(DATA, list(range(4, 15))), 4, shuffle=True),
    "our images": lambda: DataLoader(IMAGES, 4, shuffle=True, collate_fn=collate_images),
    "a client's images": lambda: DataLoader(
        ClientExamples(IMAGES, [5, -2, 5, 0]), 3, shuffle=True, collate_fn=collate_images
    ),
    "one tensor": lambda: DataLoader(TensorDataset(torch.randn(7, 2)), 3),
    "scalars and bytes": lambda: DataLoader(
        TensorDataset(torch.randn(7).double(), torch.arange(7, dtype=torch.uint8), torch.ones(7) > 0), 3
    ),
    "images of one pixel": lambda: DataLoader(TensorDataset(torch.randn(7, 3, 1, 1), torch.randn(7, 1, 4, 4)), 3),
}


class OtherLoader(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([torch.zeros(1)])


class Doubles(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        return tuple(2 * each for each in super().__getitem__(index))


class WholeDoubles(TensorDataset):
    def __getitems__(self, indices: list[int]) -> Any:
        return [tuple(2 * each for each in self[index]) for index in indices]


class FlippedImages(ImageTensors):
    def __getitems__(self, indices: list[int]) -> Any:
        batch = super().__getitems__(indices)
        return ImageBatch(batch.images.flip(-1), batch.labels)


class Rows(Dataset[Tensor]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((2,), index)


LEFT_ALONE: dict[str, Callable[[], Any]] = {
    "a list": lambda: [torch.zeros(2), torch.ones(2)],
    "a subclass of DataLoader": lambda: OtherLoader(DATA, 4),
    "a collate function": lambda: DataLoader(DATA, 4, collate_fn=lambda examples: len(examples)),
    "images, collated by torch": lambda: DataLoader(IMAGES, 4, shuffle=True),
    "other images": lambda: DataLoader(FlippedImages(PIXELS, DATA.tensors[1], 3.0, 7.0), 4, collate_fn=collate_images),
    "no batches": lambda: DataLoader(DATA, batch_size=None, shuffle=True),
    "a dataset of one's own": lambda: DataLoader(Rows(), 2, shuffle=True),
    "rows changed": lambda: DataLoader(Doubles(*DATA.tensors), 4, shuffle=True),
    "rows changed below a subset": lambda: DataLoader(Subset(Doubles(*DATA.tensors), [1, 2, 3]), 2),
    "rows changed, several at once": lambda: DataLoader(WholeDoubles(*DATA.tensors), 4, shuffle=True),
    "channels last": lambda: DataLoader(
        TensorDataset(torch.randn(7, 3, 4, 4).to(memory_format=torch.channels_last)), 3
    ),
    "transposed": lambda: DataLoader(TensorDataset(torch.randn(5, 7).T), 3),
    "trained examples": lambda: DataLoader(TensorDataset(torch.randn(7, 2, requires_grad=True)), 3),
}


def passes(make: Callable[[], Any], go_through: Callable[[Any], Any]) -> tuple[list[Any], Tensor]:
    """Two passes with random numbers drawn between batches, as dropout would, and what is drawn after them."""
    torch.manual_seed(3)
    loader, batches = make(), []
    for _ in range(2):
        for batch in go_through(loader):
            batches.append(batch)
            torch.rand(3)
    return batches, torch.rand(2)


def flat(batch: Any) -> list[Any]:
    assert type(batch) in (list, tuple, Tensor, int)
    return list(batch) if isinstance(batch, list | tuple) else [batch]


@pytest.mark.parametrize("name", [*LOADERS, *LEFT_ALONE])
def test_batches_are_the_loaders_own(name: str) -> None:
    make = (LOADERS | LEFT_ALONE)[name]
    (expected, after), (found, drawn) = passes(make, iter), passes(make, batches_of)
    assert torch.equal(after, drawn), "other random numbers were drawn"
    assert len(expected) == len(found) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is type(theirs)
        for one, other in zip(flat(ours), flat(theirs), strict=True):
            if isinstance(other, Tensor):
                assert (one.dtype, one.stride()) == (other.dtype, other.stride())
                assert torch.equal(one, other)
            else:
                assert one == other


@pytest.mark.parametrize("name", LOADERS)
def test_no_example_is_fetched_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = LOADERS[name]()
    monkeypatch.setattr(DataLoader, "__iter__", lambda self: pytest.fail("the loader was gone through"))
    list(batches_of(loader))


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_loaders_are_gone_through(name: str) -> None:
    loader = LEFT_ALONE[name]()
    assert type(batches_of(loader)) is type(iter(loader))


@pytest.mark.parametrize("rows", [[True, False], [[1, 2], [3, 4]], ["a"], [NUM_EXAMPLES], []], ids=repr)
def test_strange_rows_are_as_in_the_loader(rows: list[Any]) -> None:
    loader = DataLoader(DATA, batch_sampler=[rows])
    outcomes: list[Any] = []
    for go_through in (iter, batches_of):
        try:
            outcomes.append([each.tolist() for each in next(iter(go_through(loader)))])
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


def test_a_replaced_collate_function_of_tensors_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data._utils.collate import default_collate_fn_map

    monkeypatch.setitem(default_collate_fn_map, Tensor, lambda batch, *, collate_fn_map: len(batch))
    assert next(batches_of(DataLoader(DATA, 4))) == [4, 4]
