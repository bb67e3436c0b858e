"""Hybrid-quantized federated learning for PyTorch Lightning.

Importing the package is cheap: a name's module, and torch with it, is loaded when the name is first used.
"""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use
from fedhq_lightning.version import __version__

if TYPE_CHECKING:
    from fedhq_lightning.data import FederatedDataModule, PartitionedDataModule
    from fedhq_lightning.drop_in.quantized_precision import QuantizedPrecision
    from fedhq_lightning.launch.federated_cli import FederatedCLI
    from fedhq_lightning.quantize import QuantScheme
    from fedhq_lightning.trainer import FederatedTrainer
    from fedhq_lightning.types import Plan

__all__ = [
    "FederatedCLI",
    "FederatedDataModule",
    "FederatedTrainer",
    "PartitionedDataModule",
    "Plan",
    "QuantScheme",
    "QuantizedPrecision",
    "__version__",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.data": ["FederatedDataModule", "PartitionedDataModule"],
        "fedhq_lightning.drop_in.quantized_precision": ["QuantizedPrecision"],
        "fedhq_lightning.launch.federated_cli": ["FederatedCLI"],
        "fedhq_lightning.quantize": ["QuantScheme"],
        "fedhq_lightning.trainer": ["FederatedTrainer"],
        "fedhq_lightning.types": ["Plan"],
    },
)
