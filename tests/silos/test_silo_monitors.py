"""Values that callbacks are about to act on, of either package of Lightning."""

from types import SimpleNamespace
from typing import Any

import lightning.pytorch.callbacks as lightnings
import pytest
import pytorch_lightning.callbacks as others
import torch

from fedhq_lightning.silos.silo_monitors import monitored_values, watched_metric


@pytest.mark.parametrize("callbacks", [lightnings, others], ids=lambda each: each.__name__)
def test_callbacks_of_both_packages_are_seen(callbacks: Any) -> None:
    stopping = callbacks.EarlyStopping("val_loss", check_on_train_epoch_end=False)
    trainer: Any = SimpleNamespace(callbacks=[stopping], callback_metrics={"val_loss": torch.tensor(0.5)})
    assert monitored_values(trainer, is_validation=True) == {"EarlyStopping": {"val_loss": "0.5"}}
    assert monitored_values(trainer, is_validation=False) == {}
    assert watched_metric(trainer) == ("val_loss", "min")
