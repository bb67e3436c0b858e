"""Fashion-MNIST, or anything in its file format, from a folder of IDX files."""

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from fedhq_lightning.data.images import ImageDataModule, ImageTensors
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.support.untrusted_files import opened

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN = 0.2860 * 255
STD = 0.3530 * 255

IMAGE_MAGIC = 2051
LABEL_MAGIC = 2049
MOST_BYTES = 2**30
"""Of a file's content: one and a half times the largest set there is in this format, EMNIST's 814,255 letters."""


class FashionMNIST(ImageDataModule):
    """70,000 articles of clothing, (1, 28, 28) float32: 60,000 for training, 5,000 for validation, 5,000 for test.

    The last two are halves of the set's own test split. Any folder with the same four files works, such as MNIST's own.
    Pixels are normalised with the mean and standard deviation of Fashion-MNIST's training images.

    Args:
        root: Folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two `t10k-` files, each plain or
            with `.gz`. By default where Debian's package dataset-fashion-mnist puts them.
        batch_size: Examples per training batch, >= 1.

    Raises:
        ConfigurationError: `batch_size` is below 1; on `setup` where the folder or a file is missing, is no IDX file of
            the kind expected, is cut short, or where images and labels differ in number.

    Source: Xiao et al. 2017, arXiv 1708.07747.
    """

    def __init__(self, root: str | Path | None = None, batch_size: int = 64) -> None:
        super().__init__(batch_size)
        self.root = DEBIAN_FOLDER if root is None else expand_path(root, "FashionMNIST: root")

    def read(self) -> tuple[ImageTensors, ImageTensors]:
        """Read training and held-out images from the four IDX files."""
        if not self.root.is_dir():
            raise ConfigurationError(
                f"FashionMNIST root {str(self.root)!r}: no such folder; give the folder that holds "
                f"train-images-idx3-ubyte.gz and its three companions, or on Debian and Ubuntu install them with "
                f"apt-get install dataset-fashion-mnist (its folder is {DEBIAN_FOLDER}, the default)"
            )
        return self._read_pair("train"), self._read_pair("t10k")

    def _read_pair(self, prefix: str) -> ImageTensors:
        images = read_idx(self._file(f"{prefix}-images-idx3-ubyte"), IMAGE_MAGIC)
        labels = read_idx(self._file(f"{prefix}-labels-idx1-ubyte"), LABEL_MAGIC)
        if len(images) != len(labels):
            raise ConfigurationError(
                f"{str(self.root)!r}: {len(images)} images but {len(labels)} labels in the {prefix} files; they belong "
                f"to different data sets"
            )
        return ImageTensors(images.unsqueeze(1), labels.long(), MEAN, STD)

    def _file(self, name: str) -> Path:
        for candidate in (self.root / name, self.root / f"{name}.gz"):
            if candidate.is_file():
                return candidate
        raise ConfigurationError(f"{str(self.root / name)!r}: no such file, neither plain nor with .gz")


def read_idx(path: Path, magic: int) -> Tensor:
    """Read one IDX file of bytes.

    Args:
        path: File; decompressed where its name ends in `.gz`.
        magic: The first four bytes as a big-endian integer: 2051 for images, 2049 for labels. Its last byte is the
            number of dimensions.

    Returns:
        uint8, (num_examples, height, width) for images and (num_examples,) for labels.

    Raises:
        ConfigurationError: The file cannot be read or decompressed, starts with another number, says that it has no
            example or more than `MOST_BYTES`, or is not as long as it says.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", file format.
    """
    with opened(path) as file:
        try:
            return _read(path, file if path.suffix != ".gz" else gzip.open(file), magic)
        except EOFError as error:
            raise ConfigurationError(f"{str(path)!r}: the compressed file is truncated; fetch it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ConfigurationError(f"{str(path)!r}: not a sound gzip file ({error}); fetch it again") from error


def _read(path: Path, stream: BinaryIO | gzip.GzipFile, magic: int) -> Tensor:
    """The content, of which no more is decompressed than the header says."""
    header_bytes = 4 + 4 * (magic & 0xFF)
    header = stream.read(header_bytes)
    found = int.from_bytes(header[:4], "big")
    if len(header) >= 4 and found != magic:
        raise ConfigurationError(
            f"{str(path)!r}: starts with the number {found}, not {magic}: this is no IDX file of "
            f"{'images' if magic == IMAGE_MAGIC else 'labels'}"
        )
    shape = [int.from_bytes(header[start : start + 4], "big") for start in range(4, header_bytes, 4)]
    size = prod(shape)
    if len(header) == header_bytes and not 0 < size <= MOST_BYTES:
        raise ConfigurationError(
            f"{str(path)!r}: says that it holds {' x '.join(map(str, shape))} bytes; 1 to {MOST_BYTES:,} can be read"
        )
    content = stream.read(size + 1) if len(header) == header_bytes else b""
    if len(header) < header_bytes or len(content) < size:
        raise ConfigurationError(
            f"{str(path)!r}: {len(header) + len(content)} bytes, but {header_bytes + size} belong there: the file is "
            "truncated; fetch it again"
        )
    if len(content) > size:
        raise ConfigurationError(
            f"{str(path)!r}: more than the {header_bytes + size} bytes that belong there: the file is too long; fetch "
            "it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())
