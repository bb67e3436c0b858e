from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from fedhq_lightning.data import HuggingFaceDataModule
from fedhq_lightning.errors import ConfigurationError

RANDOM = np.random.default_rng(0)


def save(folder: Path, split: str, modes: list[str], size: int = 6, **columns: Any) -> list[np.ndarray]:
    """Write one split as Parquet, as the Hub holds it; gives the pixels of every image."""
    (folder / "data").mkdir(exist_ok=True)
    pixels = [RANDOM.integers(0, 256, (size, size, 3) if mode == "RGB" else (size, size), np.uint8) for mode in modes]
    table = {
        "image": [Image.fromarray(each) for each in pixels],
        "label": [i % 3 for i in range(len(modes))],
        **columns,
    }
    features = datasets.Dataset.from_dict({k: v for k, v in table.items() if k != "image"}).features
    features["image"] = datasets.Image()
    datasets.Dataset.from_dict(table, features=features).to_parquet(folder / "data" / f"{split}.parquet")
    return pixels


@pytest.fixture(autouse=True)
def _no_progress_bars() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def build(folder: Path, **settings: Any) -> HuggingFaceDataModule:
    # Beside the data: below it, the cache's own files would be taken for data.
    return HuggingFaceDataModule(str(folder / "data"), cache_dir=folder / "cache", **settings)


def test_colour_images(tmp_path: Path) -> None:
    train = save(tmp_path, "train", ["RGB"] * 9)
    test = save(tmp_path, "test", ["RGB"] * 4)
    module = build(tmp_path, batch_size=5)
    module.prepare_data()
    module.setup("fit")
    stored = module.train_dataset.images.numpy()
    assert np.array_equal(stored, np.stack(train).transpose(0, 3, 1, 2))
    assert np.array_equal(module.read()[1].images.numpy(), np.stack(test).transpose(0, 3, 1, 2))
    assert module.train_dataset.targets.tolist() == [0, 1, 2] * 3
    images, _ = next(iter(module.train_dataloader()))
    assert images.shape == (5, 3, 6, 6)
    expected = (stored[0] - stored.mean((0, 2, 3))[:, None, None]) / stored.std((0, 2, 3))[:, None, None]
    np.testing.assert_allclose(module.train_dataset[0][0].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_grey_images_scaled_and_split(tmp_path: Path) -> None:
    save(tmp_path, "train", ["L"] * 30)
    module = build(tmp_path, held_out_split=None, image_size=4)
    module.setup("fit")
    assert module.train_dataset.images.shape == (24, 1, 4, 4)
    assert [module.val_dataset.targets.tolist(), module.test_dataset.targets.tolist()] == [[0, 1, 2]] * 2


def test_missing_split_and_columns(tmp_path: Path) -> None:
    save(tmp_path, "train", ["L"] * 3)
    with pytest.raises(ConfigurationError, match="no split 'test'; it has train"):
        build(tmp_path).setup("fit")
    with pytest.raises(ConfigurationError, match=r"no column 'img'; it has .*; set image_key"):
        build(tmp_path, held_out_split=None, image_key="img").setup("fit")
    with pytest.raises(ConfigurationError, match=r"no column 'lable'; .*; did you mean 'label'\?"):
        build(tmp_path, held_out_split=None, label_key="lable").setup("fit")


def test_columns_of_the_wrong_kind(tmp_path: Path) -> None:
    save(tmp_path, "train", ["L"] * 3, name=["a", "b", "c"])
    with pytest.raises(ConfigurationError, match="not one class number"):
        build(tmp_path, held_out_split=None, label_key="name").setup("fit")
    with pytest.raises(ConfigurationError, match="holds str, not images"):
        build(tmp_path, held_out_split=None, image_key="name").setup("fit")


def test_images_of_several_shapes(tmp_path: Path) -> None:
    save(tmp_path, "train", ["L", "RGB", "L"])
    with pytest.raises(ConfigurationError, match=r"2 shapes, such as \(1, 6, 6\) and \(3, 6, 6\)"):
        build(tmp_path, held_out_split=None).setup("fit")


def test_what_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"data' cannot be loaded: .*check the name and the connection"):
        build(tmp_path / "nowhere").prepare_data()

    def offline(*args: Any, **settings: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConfigurationError, match=r"'cifar10' cannot be loaded: Couldn't reach the Hub; check"):
        HuggingFaceDataModule("cifar10").prepare_data()
