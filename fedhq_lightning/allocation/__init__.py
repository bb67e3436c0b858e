"""Who trains how: the allocator protocol and the allocators. Nothing here imports Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhq_lightning.allocation.baselines import FreeQatAllocator, MatchedRandomAllocator
    from fedhq_lightning.allocation.boundary import Boundary
    from fedhq_lightning.allocation.fixed import FixedAllocator
    from fedhq_lightning.allocation.protocol import AllocationContext, Allocator

__all__ = [
    "AllocationContext",
    "Allocator",
    "Boundary",
    "FixedAllocator",
    "FreeQatAllocator",
    "HybridAllocator",
    "MatchedRandomAllocator",
]

_MODULE_OF_NAME = {
    "AllocationContext": "fedhq_lightning.allocation.protocol",
    "Allocator": "fedhq_lightning.allocation.protocol",
    "FixedAllocator": "fedhq_lightning.allocation.fixed",
    "Boundary": "fedhq_lightning.allocation.boundary",
    "FreeQatAllocator": "fedhq_lightning.allocation.baselines",
    "HybridAllocator": "fedhq_lightning.allocation.hybrid",
    "MatchedRandomAllocator": "fedhq_lightning.allocation.baselines",
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
