"""Data over clients, and ready data modules."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.data.characters import CharacterDataModule
    from fedhq_lightning.data.csv_data import CSVDataModule
    from fedhq_lightning.data.digits import Digits
    from fedhq_lightning.data.federated import FederatedDataModule
    from fedhq_lightning.data.hospitals import BreastCancerHospitals
    from fedhq_lightning.data.hugging_face import HuggingFaceDataModule
    from fedhq_lightning.data.idx import FashionMNIST
    from fedhq_lightning.data.mnist5k import MNIST5k
    from fedhq_lightning.data.partitioned import PartitionedDataModule
    from fedhq_lightning.data.shakespeare import ShakespeareSpeakers
    from fedhq_lightning.data.table_form import TableForm

__all__ = [
    "BreastCancerHospitals",
    "CSVDataModule",
    "CharacterDataModule",
    "Digits",
    "FashionMNIST",
    "FederatedDataModule",
    "HuggingFaceDataModule",
    "MNIST5k",
    "PartitionedDataModule",
    "ShakespeareSpeakers",
    "TableForm",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.data.characters": ["CharacterDataModule"],
        "fedhq_lightning.data.csv_data": ["CSVDataModule"],
        "fedhq_lightning.data.digits": ["Digits"],
        "fedhq_lightning.data.federated": ["FederatedDataModule"],
        "fedhq_lightning.data.hospitals": ["BreastCancerHospitals"],
        "fedhq_lightning.data.hugging_face": ["HuggingFaceDataModule"],
        "fedhq_lightning.data.idx": ["FashionMNIST"],
        "fedhq_lightning.data.mnist5k": ["MNIST5k"],
        "fedhq_lightning.data.partitioned": ["PartitionedDataModule"],
        "fedhq_lightning.data.shakespeare": ["ShakespeareSpeakers"],
        "fedhq_lightning.data.table_form": ["TableForm"],
    },
)
