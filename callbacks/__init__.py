"""Callbacks for `FederatedTrainer` and `lightning.pytorch.Trainer`. Each is imported when its name is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if not __name__.startswith("fedhq_lightning."):
    raise ImportError(
        "import fedhq_lightning.callbacks, not callbacks: a second copy of every class would not be recognised"
    )

if TYPE_CHECKING:
    from fedhq_lightning.callbacks.allocators import (
        AllocatorCallback,
        FixedAllocator,
        FreeQatAllocator,
        HybridAllocator,
        MatchedRandomAllocator,
    )
    from fedhq_lightning.callbacks.early_stopping import EarlyStopping
    from fedhq_lightning.callbacks.federated_averaging import FederatedAveraging
    from fedhq_lightning.callbacks.quantized_training import QuantizedTraining
    from fedhq_lightning.federated.callback import RoundCallback
    from fedhq_lightning.reporting.progress import ProgressDisplay

__all__ = [
    "AllocatorCallback",
    "EarlyStopping",
    "FederatedAveraging",
    "FixedAllocator",
    "FreeQatAllocator",
    "HybridAllocator",
    "MatchedRandomAllocator",
    "ProgressDisplay",
    "QuantizedTraining",
    "RoundCallback",
]

_MODULES = {
    "AllocatorCallback": "fedhq_lightning.callbacks.allocators",
    "EarlyStopping": "fedhq_lightning.callbacks.early_stopping",
    "FederatedAveraging": "fedhq_lightning.callbacks.federated_averaging",
    "FixedAllocator": "fedhq_lightning.callbacks.allocators",
    "FreeQatAllocator": "fedhq_lightning.callbacks.allocators",
    "HybridAllocator": "fedhq_lightning.callbacks.allocators",
    "MatchedRandomAllocator": "fedhq_lightning.callbacks.allocators",
    "ProgressDisplay": "fedhq_lightning.reporting.progress",
    "QuantizedTraining": "fedhq_lightning.callbacks.quantized_training",
    "RoundCallback": "fedhq_lightning.federated.callback",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
