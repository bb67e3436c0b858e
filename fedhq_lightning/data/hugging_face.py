"""Image classification sets from the Hugging Face Hub, for users who are online."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhq_lightning.data.images import ImageDataModule, ImageTensors, stratified_split
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.extras import check_installed
from fedhq_lightning.support.paths import expand, expand_path


class HuggingFaceDataModule(ImageDataModule):
    """Any image classification set of the Hugging Face Hub, or a folder that `datasets.load_dataset` reads.

    Images are decoded once and held in memory as bytes, (channels, height, width) each, and normalised with the mean
    and standard deviation of every channel over the training images.

    Args:
        name: As for `datasets.load_dataset`: "ylecun/mnist", "uoft-cs/cifar10", or a path.
        image_key: Column of images.
        label_key: Column of class numbers.
        train_split: Split to train on.
        held_out_split: Split to validate and to test on, half of it each; where it is None, of each class every fifth
            training example.
        image_size: Height and width to which images are scaled; None where all have the same size already.
        batch_size: Examples per training batch, >= 1.
        cache_dir: Where downloads go; None for Hugging Face's usual place.

    Raises:
        ConfigurationError: `batch_size` is below 1; on `setup` where the package datasets is missing, the set cannot
            be loaded, a split or column is not there, labels are no class numbers, or images differ in shape.
    """

    def __init__(
        self,
        name: str,
        image_key: str = "image",
        label_key: str = "label",
        train_split: str = "train",
        held_out_split: str | None = "test",
        image_size: int | None = None,
        batch_size: int = 64,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(batch_size)
        self.name = expand(name, "name")
        self.image_key = image_key
        self.label_key = label_key
        self.train_split = train_split
        self.held_out_split = held_out_split
        self.image_size = image_size
        self.cache_dir = None if cache_dir is None else expand_path(cache_dir, "cache_dir")

    def prepare_data(self) -> None:
        """Download the set into Hugging Face's cache where it is not there yet."""
        self._load()

    def read(self) -> tuple[ImageTensors, ImageTensors]:
        """Decode all images of both splits."""
        splits = self._load()
        images, targets = self._decode(self._split(splits, self.train_split))
        if self.held_out_split is None:
            train, held_out = stratified_split(targets)
            held_out_images, held_out_targets = images[held_out], targets[held_out]
            images, targets = images[train], targets[train]
        else:
            held_out_images, held_out_targets = self._decode(self._split(splits, self.held_out_split))
        self.class_names = getattr(splits[self.train_split].features[self.label_key], "names", ())
        mean, std = _channel_statistics(images)
        return ImageTensors(images, targets, mean, std), ImageTensors(held_out_images, held_out_targets, mean, std)

    def _load(self) -> Any:
        check_installed("HuggingFaceDataModule", "datasets")
        import datasets

        shows_bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(self.name, cache_dir=None if self.cache_dir is None else str(self.cache_dir))
        # Hub, network, script and file errors share no base class; each means that this name gives no data here.
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigurationError(
                f"Hugging Face dataset {self.name!r} cannot be loaded: {reason}; check the name and the connection, or "
                f"give the path of a local copy. Offline there are MNIST5k, Digits and FashionMNIST"
            ) from error
        finally:
            if shows_bars:
                datasets.enable_progress_bars()

    def _split(self, splits: Any, split: str) -> Any:
        if split not in splits:
            raise ConfigurationError(
                f"Hugging Face dataset {self.name!r} has no split {split!r}; it has {', '.join(splits)}"
                f"{nearest(split, splits)}"
            )
        table = splits[split]
        for key in (self.image_key, self.label_key):
            if key not in table.column_names:
                raise ConfigurationError(
                    f"Hugging Face dataset {self.name!r} has no column {key!r}; it has {', '.join(table.column_names)}"
                    f"{nearest(key, table.column_names)}; set image_key and label_key"
                )
        return table

    def _decode(self, table: Any) -> tuple[torch.Tensor, torch.Tensor]:
        targets = np.asarray(table[self.label_key][:])
        if targets.ndim != 1 or targets.dtype.kind not in "iu" or (targets.size and targets.min() < 0):
            raise ConfigurationError(
                f"Hugging Face dataset {self.name!r}: column {self.label_key!r} holds {targets.dtype}, not one class "
                f"number >= 0 per example; set label_key"
            )
        images = [self._pixels(image) for image in table[self.image_key]]
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise ConfigurationError(
                f"Hugging Face dataset {self.name!r}: images of {len(shapes)} shapes, such as "
                f"{' and '.join(map(str, sorted(shapes)[:2]))}; set image_size to scale them to one"
            )
        return torch.from_numpy(np.stack(images)), torch.from_numpy(targets.astype(np.int64))

    def _pixels(self, image: Any) -> NDArray[np.uint8]:
        """One image as (channels, height, width) bytes."""
        if not hasattr(image, "convert"):
            raise ConfigurationError(
                f"Hugging Face dataset {self.name!r}: column {self.image_key!r} holds {type(image).__name__}, not "
                f"images; set image_key"
            )
        # Greyscale stays one channel; palettes, transparency and the like become RGB.
        image = image if image.mode == "L" else image.convert("RGB")
        if self.image_size is not None:
            image = image.resize((self.image_size, self.image_size))
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _channel_statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel, exact: counted over the 256 values that a pixel can have."""
    values = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        # A channel that never changes keeps its unit.
        deviations.append(((share * (values - mean) ** 2).sum().sqrt().item()) or 1.0)
    return means, deviations
