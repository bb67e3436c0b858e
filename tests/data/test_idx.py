import gzip
import tracemalloc
from pathlib import Path

import pytest
import torch

from fedhq_lightning.data.idx import DEBIAN_FOLDER, IMAGE_MAGIC, MEAN, STD, FashionMNIST, read_idx
from fedhq_lightning.errors import ConfigurationError

NUM_EXAMPLES = {"train": 12, "t10k": 5}


def idx_bytes(values: torch.Tensor) -> bytes:
    header = (0x0800 | values.dim()).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + bytes(values.flatten().int().tolist())


def write_folder(folder: Path, compressed: bool) -> None:
    for prefix, num_examples in NUM_EXAMPLES.items():
        images = torch.arange(num_examples * 28 * 28).remainder(251).reshape(num_examples, 28, 28)
        for name, values in (("images-idx3", images), ("labels-idx1", torch.arange(num_examples) % 10)):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(idx_bytes(values)) if compressed else idx_bytes(values))


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_plain_and_compressed_files(tmp_path: Path, compressed: bool) -> None:
    write_folder(tmp_path, compressed)
    module = FashionMNIST(tmp_path, batch_size=4)
    module.setup("fit")
    assert (len(module.train_dataset), len(module.val_dataset)) == (12, 5)
    assert module.train_dataset.targets.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    expected = torch.arange(28 * 28).remainder(251).reshape(1, 28, 28)
    image, _ = module.train_dataset[0]
    torch.testing.assert_close(image, (expected - MEAN) / STD)
    assert next(iter(module.val_dataloader()))[0].shape == (5, 1, 28, 28)


def test_missing_folder_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere'.*no such folder.*apt-get install dataset-fashion-mnist"):
        FashionMNIST(tmp_path / "nowhere").setup("fit")
    assert FashionMNIST().root == DEBIAN_FOLDER


def test_missing_file(tmp_path: Path) -> None:
    write_folder(tmp_path, compressed=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ConfigurationError, match=r"t10k-labels-idx1-ubyte'.*no such file"):
        FashionMNIST(tmp_path).setup("fit")


def test_wrong_magic(tmp_path: Path) -> None:
    write_folder(tmp_path, compressed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes((tmp_path / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(ConfigurationError, match=r"starts with the number 2049, not 2051.*images"):
        FashionMNIST(tmp_path).setup("fit")


@pytest.mark.parametrize("kept_bytes", [0, 3, 10, 16, 500])
def test_truncated_plain_file(tmp_path: Path, kept_bytes: int) -> None:
    write_folder(tmp_path, compressed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ConfigurationError, match=rf"{kept_bytes} bytes, but .* truncated"):
        FashionMNIST(tmp_path).setup("fit")


def test_file_longer_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(torch.zeros(2, 3, 3)) + b"x")
    with pytest.raises(ConfigurationError, match="more than the 34 bytes that belong there: the file is too long"):
        read_idx(path, IMAGE_MAGIC)


def test_headers_that_say_too_much_or_nothing(tmp_path: Path) -> None:
    for sizes in ((2**32 - 1, 2**32 - 1, 2**32 - 1), (0, 2**32 - 1, 2**32 - 1), (2**32 - 1, 0, 2**31), (0, 28, 28)):
        path = tmp_path / "images"
        path.write_bytes((2051).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in sizes))
        with pytest.raises(ConfigurationError, match=rf"says that it holds {sizes[0]} x .*; 1 to 1,073,741,824 can"):
            read_idx(path, IMAGE_MAGIC)


def test_a_bomb_is_not_decompressed(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "images.gz", "wb") as file:
        file.write(idx_bytes(torch.zeros(1, 1, 1)))
        for _ in range(300):
            file.write(bytes(2**20))
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError, match="more than the 17 bytes that belong there"):
            read_idx(tmp_path / "images.gz", IMAGE_MAGIC)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_truncated_and_damaged_gzip(tmp_path: Path) -> None:
    write_folder(tmp_path, compressed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(ConfigurationError, match="compressed file is truncated"):
        FashionMNIST(tmp_path).setup("fit")
    path.write_bytes(b"not gzip at all")
    with pytest.raises(ConfigurationError, match="not a sound gzip file"):
        FashionMNIST(tmp_path).setup("fit")


def test_images_and_labels_that_do_not_belong_together(tmp_path: Path) -> None:
    write_folder(tmp_path, compressed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(torch.zeros(7)))
    with pytest.raises(ConfigurationError, match="12 images but 7 labels"):
        FashionMNIST(tmp_path).setup("fit")


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_set_has_all_images() -> None:
    module = FashionMNIST()
    assert module.train_dataset.targets.bincount().tolist() == [6000] * 10
    for held_out in (module.val_dataset, module.test_dataset):
        assert held_out.targets.bincount().tolist() == [500] * 10
    assert module.train_dataset.images.double().mean().item() == pytest.approx(MEAN, abs=0.05)
