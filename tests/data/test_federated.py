from collections.abc import Sequence

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

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


ALL = TensorDataset(torch.arange(50))
OWN = SubsetRandomSampler(range(7))


@pytest.mark.parametrize(
    ("loader", "num_examples"),
    [
        (DataLoader(ALL, 8, sampler=OWN), 7),
        (DataLoader(ALL, batch_sampler=BatchSampler(OWN, 8, drop_last=False)), 7),
        (DataLoader(ALL, None, sampler=BatchSampler(OWN, 8, drop_last=False)), 7),
        (DataLoader(ALL, 8, sampler=WeightedRandomSampler(torch.ones(50), 20)), 20),
        (DataLoader(ALL, batch_sampler=[[1, 2], [3]]), 50),
    ],
)
def test_a_client_holds_what_its_sampler_draws(
    monkeypatch: pytest.MonkeyPatch, loader: DataLoader, num_examples: int
) -> None:
    """Clients that share one dataset weigh by their own examples, not by everybody's."""
    monkeypatch.setattr(TwoClients, "train_dataloader", lambda self, client_id: loader)
    assert TwoClients().num_examples("small") == num_examples


def test_a_loader_that_does_not_tell_its_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoClients, "train_dataloader", lambda self, client_id: [[1, 2], [3]])
    with pytest.raises(ConfigurationError, match=r"client 'small': list does not tell .* override num_examples"):
        TwoClients().num_examples("small")


def test_what_must_be_given_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        FederatedDataModule()
