"""A client's batches as the accountant assumes them: every example drawn by a coin flip of its own, at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, SubsetRandomSampler

from fedhq_lightning.data.federated import sampler_of
from fedhq_lightning.data.whole_batches import batches_of
from fedhq_lightning.errors import ConfigurationError


class PoissonBatches:
    """Batches from a loader's dataset, as many as the loader would give, of as many examples on average.

    Draws from torch's global random numbers. A batch may be empty: then its tensors have no rows.

    Args:
        loader: The client's own; its order is not used.

    Attributes:
        rate: Chance with which an example is in a batch.
        expected: Examples of a batch on average.

    Raises:
        ConfigurationError: Its examples cannot be drawn one by one.
    """

    def __init__(self, loader: Any) -> None:
        batch_size = loader.batch_size if isinstance(loader, DataLoader) else None
        examples = None if batch_size is None else _examples_of(loader)
        if batch_size is None or examples is None:
            raise ConfigurationError(
                "LocalPrivacy draws every example by a coin flip of its own, and this client's training loader decides "
                "itself which it gives; return a DataLoader with a batch_size over a map-style dataset, shuffled or not"
            )
        self._loader, self._examples = loader, examples
        self.rate = min(1.0, batch_size / max(1, len(examples)))
        self.expected = self.rate * len(examples)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Batches as the loader collates them."""
        counts: list[int] = []
        loader = DataLoader(
            self._loader.dataset, batch_sampler=_Drawn(self, counts), collate_fn=self._loader.collate_fn
        )
        for position, batch in enumerate(batches_of(loader)):
            yield batch if counts[position] else tree_map_only(Tensor, lambda tensor: tensor[:0], batch)

    def draw(self) -> list[int]:
        """The examples of one batch, by their places in the dataset."""
        drawn = torch.nonzero(torch.rand(len(self._examples), dtype=torch.float64) < self.rate)
        return [self._examples[place] for place in drawn.flatten().tolist()]


class _Drawn:
    """Places of the examples of each batch; in the stead of none, the first example, which is cut off again."""

    def __init__(self, batches: PoissonBatches, counts: list[int]) -> None:
        self._batches, self._counts = batches, counts

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            places = self._batches.draw()
            self._counts.append(len(places))
            yield places or [self._batches._examples[0]]


def _examples_of(loader: DataLoader[Any]) -> Sequence[int] | None:
    """Places of the examples that one pass of a loader gives, each once; None where that cannot be told."""
    sampler, dataset = sampler_of(loader), loader.dataset
    if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
        return None
    if isinstance(sampler, SubsetRandomSampler):
        return [int(place) for place in sampler.indices]
    gives_each_once = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(dataset)
    )
    return range(len(dataset)) if gives_each_once else None
