from collections.abc import Sequence

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning.data.federated import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.testing import DataModuleContract


class TwoClients(FederatedDataModule):
    @property
    def client_ids(self) -> Sequence[str]:
        return ["small", "large"]

    def train_dataloader(self, client_id: str) -> DataLoader:
        num_examples = {"small": 3, "large": 50}[client_id]
        return DataLoader(TensorDataset(torch.arange(num_examples)), batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.arange(5)))


def test_defaults() -> None:
    module = TwoClients()
    assert [module.num_examples(client_id) for client_id in module.client_ids] == [3, 50]
    assert module.label_counts("small") is None


class TestTwoClients(DataModuleContract):
    """The base's own `num_examples` and `calibration_batch` keep to the contract."""

    make = TwoClients


def test_calibration_batch_is_a_first_batch() -> None:
    assert TwoClients().calibration_batch("large")[0].shape == (8,)


def test_a_loader_that_does_not_tell_its_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoClients, "train_dataloader", lambda self, client_id: [[1, 2], [3]])
    with pytest.raises(ConfigurationError, match=r"client 'small': list does not tell .* override num_examples"):
        TwoClients().num_examples("small")


def test_what_must_be_given_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        FederatedDataModule()
