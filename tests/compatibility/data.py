"""Tiny clients whose batches come in the forms found in the wild."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.types import ClientId

NUM_FEATURES = 12
NUM_CLASSES = 3
NUM_WORDS = 20
SIZES = (20, 13, 16)
BATCH_SIZE = 8


def vectors(count: int, seed: int) -> Dataset[Any]:
    """Gaussian inputs whose class is the largest of three fixed random projections."""
    inputs = torch.randn(count, NUM_FEATURES, generator=torch.Generator().manual_seed(seed))
    projections = torch.randn(NUM_FEATURES, NUM_CLASSES, generator=torch.Generator().manual_seed(999))
    return TensorDataset(inputs, (inputs @ projections).argmax(1))


def images(count: int, seed: int) -> Dataset[Any]:
    """Pictures of 1 x 8 x 8, bright in the part that belongs to their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    pictures = torch.randn(count, 1, 8, 8, generator=generator)
    for label in range(NUM_CLASSES):
        pictures[labels == label, :, 2 * label : 2 * label + 2] += 2
    return TensorDataset(pictures, labels)


def sentences(count: int, seed: int) -> Dataset[Any]:
    """Six words each, and whether the first or the last of them is the larger number, or neither."""
    words = torch.randint(NUM_WORDS, (count, 6), generator=torch.Generator().manual_seed(seed))
    return TensorDataset(words, (words[:, 0] - words[:, -1]).sign() + 1)


class Clients(FederatedDataModule):
    """Three clients; their last batches are partial ones.

    Args:
        examples: Makes a dataset of a size from a seed.
        collate: Makes a batch of a list of examples.
        num_val_loaders: Held-out loaders; 1 is given alone, not in a list.
    """

    client_ids: Sequence[ClientId] = (0, 1, 2)

    def __init__(
        self,
        examples: Callable[[int, int], Dataset[Any]] = vectors,
        collate: Callable[[list[Any]], Any] = default_collate,
        num_val_loaders: int = 1,
    ) -> None:
        super().__init__()
        self.examples = examples
        self.collate = collate
        self.num_val_loaders = num_val_loaders

    def train_dataloader(self, client_id: Any) -> DataLoader[Any]:
        return DataLoader(self.examples(SIZES[client_id], 1 + client_id), BATCH_SIZE, collate_fn=self.collate)

    def val_dataloader(self) -> Any:
        loaders = [self._held_out(100 + number) for number in range(self.num_val_loaders)]
        return loaders[0] if len(loaders) == 1 else loaders

    def test_dataloader(self) -> DataLoader[Any]:
        return self._held_out(200)

    def _held_out(self, seed: int) -> DataLoader[Any]:
        return DataLoader(self.examples(20, seed), BATCH_SIZE, collate_fn=self.collate)


def as_dict(rows: list[Any]) -> dict[str, Any]:
    """As datasets of Hugging Face and torchgeo give them, with something beside tensors."""
    inputs, labels = default_collate(rows)
    return {"image": inputs, "label": labels, "names": [f"row {number}" for number in range(len(rows))]}


def as_model_inputs(rows: list[Any]) -> dict[str, Tensor]:
    """As a tokenizer of Hugging Face gives them."""
    words, labels = default_collate(rows)
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": labels}


@dataclass
class Views:
    """The inputs of one batch."""

    first: Tensor
    second: Tensor


@dataclass
class Batch:
    """A dataclass that holds another."""

    views: Views
    labels: Tensor
    source: str = "made"


def as_dataclass(rows: list[Any]) -> Batch:
    inputs, labels = default_collate(rows)
    return Batch(Views(inputs, -inputs), labels)


class Pair(NamedTuple):
    """A batch with names."""

    inputs: Tensor
    labels: Tensor


def as_named_tuple(rows: list[Any]) -> Pair:
    return Pair(*default_collate(rows))


def as_nested(rows: list[Any]) -> Any:
    """As contrastive learning has them: two views, and the label."""
    inputs, labels = default_collate(rows)
    return (inputs, inputs + 0.1), labels
