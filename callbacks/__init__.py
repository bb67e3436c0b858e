"""Callbacks for `FederatedTrainer` and `lightning.pytorch.Trainer`.

To import any name from here registers `strategy="fedhq"` with Lightning.
"""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

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
        LateQatAllocator,
        MatchedRandomAllocator,
    )
    from fedhq_lightning.callbacks.early_stopping import EarlyStopping
    from fedhq_lightning.callbacks.federated_averaging import FederatedAveraging
    from fedhq_lightning.callbacks.quantized_training import QuantizedTraining
    from fedhq_lightning.federated.callback import RoundCallback
    from fedhq_lightning.report.progress import ProgressDisplay

__all__ = [
    "AllocatorCallback",
    "EarlyStopping",
    "FederatedAveraging",
    "FixedAllocator",
    "FreeQatAllocator",
    "HybridAllocator",
    "LateQatAllocator",
    "MatchedRandomAllocator",
    "ProgressDisplay",
    "QuantizedTraining",
    "RoundCallback",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.callbacks.allocators": [
            "AllocatorCallback",
            "FixedAllocator",
            "FreeQatAllocator",
            "HybridAllocator",
            "LateQatAllocator",
            "MatchedRandomAllocator",
        ],
        "fedhq_lightning.callbacks.early_stopping": ["EarlyStopping"],
        "fedhq_lightning.callbacks.federated_averaging": ["FederatedAveraging"],
        "fedhq_lightning.callbacks.quantized_training": ["QuantizedTraining"],
        "fedhq_lightning.federated.callback": ["RoundCallback"],
        "fedhq_lightning.report.progress": ["ProgressDisplay"],
    },
    along="fedhq_lightning.silos.silo_strategy",
)
