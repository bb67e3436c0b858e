"""Hybrid-quantized federated learning for PyTorch Lightning.

Importing the package is cheap: a name's module, and torch with it, is loaded when the name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhq_lightning.data import FederatedDataModule, PartitionedDataModule
    from fedhq_lightning.quantize import QuantScheme
    from fedhq_lightning.trainer import FederatedTrainer
    from fedhq_lightning.types import Plan

__version__ = "0.1.0"

__all__ = ["FederatedDataModule", "FederatedTrainer", "PartitionedDataModule", "Plan", "QuantScheme", "__version__"]

_MODULE_OF_NAME = {
    "FederatedDataModule": "fedhq_lightning.data",
    "FederatedTrainer": "fedhq_lightning.trainer",
    "PartitionedDataModule": "fedhq_lightning.data",
    "Plan": "fedhq_lightning.types",
    "QuantScheme": "fedhq_lightning.quantize",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562) and keep it."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
