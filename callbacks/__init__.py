"""Callbacks for `FederatedTrainer`: allocators and round callbacks. Each is imported when its name is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if not __name__.startswith("fedhq_lightning."):
    raise ImportError(
        "import fedhq_lightning.callbacks, not callbacks: a second copy of every class would not be recognised"
    )

if TYPE_CHECKING:
    from fedhq_lightning.allocation import FixedAllocator, FreeQatAllocator, HybridAllocator, MatchedRandomAllocator
    from fedhq_lightning.callbacks.early_stopping import EarlyStopping
    from fedhq_lightning.federated.callback import RoundCallback
    from fedhq_lightning.reporting.progress import ProgressDisplay

__all__ = [
    "EarlyStopping",
    "FixedAllocator",
    "FreeQatAllocator",
    "HybridAllocator",
    "MatchedRandomAllocator",
    "ProgressDisplay",
    "RoundCallback",
]

_MODULES = {
    "EarlyStopping": "fedhq_lightning.callbacks.early_stopping",
    "FixedAllocator": "fedhq_lightning.allocation",
    "FreeQatAllocator": "fedhq_lightning.allocation",
    "HybridAllocator": "fedhq_lightning.allocation",
    "MatchedRandomAllocator": "fedhq_lightning.allocation",
    "ProgressDisplay": "fedhq_lightning.reporting.progress",
    "RoundCallback": "fedhq_lightning.federated.callback",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
