"""Every kind of federated data that the suite and the recipes use keeps to the contract."""

from collections.abc import Callable
from functools import cache

import pytest
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, SizePartitioner
from lightning import LightningDataModule

from fedhq_lightning.data import BreastCancerHospitals, Digits, FederatedDataModule, MNIST5k, PartitionedDataModule
from fedhq_lightning.testing import DataModuleContract

from ..small_federation import SmallData
from .test_partitioned import Dictionaries, Wrapped, label_of
from .texts import SmallTexts


def dealt(data: Callable[[], LightningDataModule]) -> Callable[[], FederatedDataModule]:
    """Skewed labels, and clients without any example."""
    return lambda: PartitionedDataModule(data(), DirichletPartitioner(40, "label", 0.05, min_partition_size=0))


DATA_MODULES: dict[str, Callable[[], FederatedDataModule]] = {
    "small": SmallData,
    "small-named-with-an-empty-client": lambda: SmallData({"a": 9, "b": 0, "c": 3, 4: 8}),
    "small-without-labels": lambda: SmallData(tells=False),
    "digits": dealt(Digits),
    "mnist5k": dealt(cache(MNIST5k)),  # read once: 0.2 s, and every test asks for new modules
    "rows": dealt(Wrapped),
    "dictionaries": lambda: PartitionedDataModule(Wrapped(Dictionaries()), IidPartitioner(4), label_of),
    "holding-back": lambda: PartitionedDataModule(
        Digits(), DirichletPartitioner(40, "label", 0.05, min_partition_size=0), client_holdout=0.3
    ),
    "hospitals-holding-back": lambda: BreastCancerHospitals(client_holdout=0.2),
    "texts-holding-back": lambda: SmallTexts(client_holdout=0.2),
    "drop-last": lambda: PartitionedDataModule(Wrapped(drop_last=True), SizePartitioner([490, 10, 100])),
}


class TestEveryDataModule(DataModuleContract):
    @pytest.fixture(autouse=True, params=DATA_MODULES.values(), ids=DATA_MODULES.keys())
    def _used(self, request: pytest.FixtureRequest) -> None:
        self._make = request.param

    def make(self) -> FederatedDataModule:
        return self._make()
