"""What is of Lightning, whichever of its two packages a class comes from."""

import sys
from typing import Any

import lightning as L
import pytest
import pytorch_lightning as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from lightning_fabric.utilities import exceptions
from torch import nn

from fedhq_lightning.support.lightnings import (
    AnyDataModule,
    AnyLogger,
    AnyModule,
    as_of,
    both,
    is_overridden,
    lightnings_own,
)


class Validates(pl.LightningModule):
    def validation_step(self, batch: object, batch_idx: int) -> None: ...


class OfBoth(Validates, L.LightningModule):
    """As where a library's mixin is built on the other package."""


def test_a_class_and_its_like() -> None:
    assert both(L.LightningModule) == (L.LightningModule, pl.LightningModule)
    assert both(CSVLogger, L.Callback) == (CSVLogger, L.Callback, pl.loggers.CSVLogger, pl.Callback)
    assert both(MisconfigurationException)[1:] == (exceptions.MisconfigurationException,)
    with pytest.raises(ValueError, match=r"torch.nn.modules.linear.Linear is not of lightning"):
        both(nn.Linear)


def test_the_other_package_is_not_imported_to_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pytorch_lightning", "lightning_fabric")]:
        monkeypatch.delitem(sys.modules, name)
    assert both(L.LightningModule) == (L.LightningModule,)
    assert isinstance(L.LightningModule(), AnyModule)
    assert not isinstance(Validates(), AnyModule)
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("package", [L, pl])
def test_what_is_one_of_either(package: Any) -> None:
    module, data = package.LightningModule(), package.LightningDataModule()
    assert isinstance(module, AnyModule)
    assert issubclass(type(module), AnyModule)
    assert isinstance(data, AnyDataModule)
    assert isinstance(data, AnyModule | AnyDataModule)
    assert not isinstance(module, AnyDataModule | AnyLogger)
    loggers = L.pytorch.loggers if package is L else pl.loggers
    assert isinstance(loggers.CSVLogger("."), AnyLogger)


@pytest.mark.parametrize("kind", [Validates, OfBoth])
def test_overridden(kind: type[L.LightningModule]) -> None:
    assert lightnings_own(kind()) is pl.LightningModule
    assert is_overridden("validation_step", kind())
    assert not is_overridden("training_step", kind())
    with pytest.raises(ValueError, match="Linear is neither a LightningModule nor"):
        is_overridden("forward", nn.Linear(1, 1))


def test_as_the_trainers_package_has_it() -> None:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "enable_progress_bar": False,
    }
    assert as_of(pl.Trainer(**quiet), L.Callback) is pl.Callback
    assert as_of(L.Trainer(**quiet), L.Callback) is L.Callback
