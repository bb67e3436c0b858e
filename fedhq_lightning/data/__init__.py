"""Data over clients, and ready data modules. Each is imported when its name is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhq_lightning.data.digits import Digits
    from fedhq_lightning.data.federated import FederatedDataModule
    from fedhq_lightning.data.hugging_face import HuggingFaceDataModule
    from fedhq_lightning.data.idx import FashionMNIST
    from fedhq_lightning.data.mnist5k import MNIST5k
    from fedhq_lightning.data.partitioned import PartitionedDataModule

__all__ = ["Digits", "FashionMNIST", "FederatedDataModule", "HuggingFaceDataModule", "MNIST5k", "PartitionedDataModule"]

_MODULES = {
    "Digits": "digits",
    "FashionMNIST": "idx",
    "FederatedDataModule": "federated",
    "HuggingFaceDataModule": "hugging_face",
    "MNIST5k": "mnist5k",
    "PartitionedDataModule": "partitioned",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
