"""Images that fit in memory: a dataset whose batches cost one indexing operation, and its data module."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.tensors import rows_of

HOLD_OUT_EVERY, TEST_EVERY = 5, 2
EVAL_BATCH_SIZE = 500


class ImageBatch(Sequence[tuple[Tensor, Tensor]]):
    """Several examples fetched at once: a sequence of (image, label) that also holds the stacked tensors.

    `collate_images` takes the tensors as they are; any other collate function sees ordinary examples.

    Args:
        images: (batch, channels, height, width) float32.
        labels: (batch,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ImageBatch(self.images[index], self.labels[index])
        return self.images[index], self.labels[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images, self.labels, strict=True)


def collate_images(examples: Any) -> Any:
    """Collate function that passes an `ImageBatch` through as (images, labels) and stacks anything else."""
    # Collating example by example takes about ten times as long as a LeNet-5 training step.
    if isinstance(examples, ImageBatch):
        return [examples.images, examples.labels]
    return default_collate(examples)


class ImageTensors(Dataset[tuple[Tensor, Tensor]]):
    """Images held as bytes, given out as normalised float32.

    Args:
        images: (num_examples, channels, height, width) uint8.
        targets: (num_examples,) int64 class numbers.
        mean: Mean pixel of the training images, one per channel or one for all, in the unit of `images`.
        std: Standard deviation likewise, > 0.

    Raises:
        ValueError: Shapes or dtypes are other than these.
    """

    def __init__(
        self, images: Tensor, targets: Tensor, mean: float | Sequence[float], std: float | Sequence[float]
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or targets.shape != images.shape[:1]:
            raise ValueError(
                f"images must be uint8 (num_examples, channels, height, width) and targets (num_examples,), got "
                f"{images.dtype} {tuple(images.shape)} and {tuple(targets.shape)}"
            )
        self.images = images
        self.targets = targets.long()
        self._mean = torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        self._std = torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def normalization(self) -> dict[str, list[float]]:
        """`mean` and `std`, one value a channel, or one for all."""
        return {"mean": self._mean.flatten().tolist(), "std": self._std.flatten().tolist()}

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._normalise(self.images[index]), self.targets[index]

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        """Fetch a whole batch; torch's DataLoader calls this where a dataset has it."""
        return ImageBatch(*self.take(torch.as_tensor(indices)))

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Some of the examples as images, (batch, channels, height, width) float32, and labels, (batch,) int64.

        Args:
            index: Their numbers, (batch,) int64.
        """
        return self._normalise(rows_of(self.images, index)), rows_of(self.targets, index)

    def subset(self, rows: Tensor) -> "ImageTensors":
        """Some of the images, normalised as all are.

        Args:
            rows: Their numbers, (num_rows,) int64.
        """
        chosen = copy.copy(self)
        chosen.images, chosen.targets = self.images[rows], self.targets[rows]
        return chosen

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().sub_(self._mean).div_(self._std)


def stratified_split(targets: Tensor, every: int = HOLD_OUT_EVERY) -> tuple[Tensor, Tensor]:
    """Row numbers of a fixed split: of each class every fifth example, in file order, is put aside.

    No random numbers are involved, so the split is the same on every machine and with every library version.

    Args:
        targets: (num_examples,) class numbers.
        every: Which of a class are put aside, >= 1.

    Returns:
        Rows that stay and rows put aside, each ascending int64.
    """
    aside = torch.zeros(len(targets), dtype=torch.bool)
    for label in set(targets.tolist()):
        rows = (targets == label).nonzero().flatten()
        aside[rows[every - 1 :: every]] = True
    return (~aside).nonzero().flatten(), aside.nonzero().flatten()


class ImageDataModule(LightningDataModule, ABC):
    """Base of the ready data modules: subclasses say how images and labels are read.

    Of the held-out images of each class every second one, in file order, is a test image and the others are validation
    images: validation chooses the round that is deployed, so it cannot tell how good that is.

    Args:
        batch_size: Examples per training batch, >= 1.

    Raises:
        ConfigurationError: `batch_size` is below 1.
    """

    class_names: Sequence[str] = ()
    """By class number; empty where they are not known."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigurationError(f"batch_size {batch_size}: must be 1 or more")
        self.batch_size = batch_size
        self._datasets: tuple[ImageTensors, ImageTensors, ImageTensors] | None = None

    @abstractmethod
    def read(self) -> tuple[ImageTensors, ImageTensors]:
        """Read the training and the held-out images; called once per process."""

    @property
    def train_dataset(self) -> ImageTensors:
        """Training images, in file order."""
        return self._read_once()[0]

    @property
    def val_dataset(self) -> ImageTensors:
        """Images that no client trains on, in file order."""
        return self._read_once()[1]

    @property
    def test_dataset(self) -> ImageTensors:
        """Images that are in none of the others, in file order."""
        return self._read_once()[2]

    def model_inputs(self) -> dict[str, Any]:
        """`pixels`: `mean` and `std` of each channel, or of all; an input is (pixel - mean) / std. `classes`: names.

        Pixels are whole numbers as the files have them, `dtype` uint8, mostly 0 to 255. Names are those in
        `class_names`.
        """
        told: dict[str, Any] = {"pixels": {**self.train_dataset.normalization, "dtype": "uint8"}}
        return told | ({"classes": list(self.class_names)} if self.class_names else {})

    def setup(self, stage: str) -> None:
        """Read the images where that has not happened yet."""
        self._read_once()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches of `batch_size`; the order comes from torch's global random numbers."""
        return DataLoader(self.train_dataset, self.batch_size, shuffle=True, collate_fn=collate_images)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches in file order."""
        return _in_file_order(self.val_dataset)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in file order."""
        return _in_file_order(self.test_dataset)

    def _read_once(self) -> tuple[ImageTensors, ImageTensors, ImageTensors]:
        if self._datasets is None:
            train, held_out = self.read()
            val, test = (held_out.subset(rows) for rows in stratified_split(held_out.targets, TEST_EVERY))
            self._datasets = train, val, test
        return self._datasets


def _in_file_order(dataset: ImageTensors) -> DataLoader[Any]:
    # A loader without its own generator draws from torch's global random numbers even where it does not shuffle.
    return DataLoader(dataset, EVAL_BATCH_SIZE, collate_fn=collate_images, generator=torch.Generator())
