"""Who trains how: the allocator protocol and the allocators. Nothing here imports Lightning."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.allocation.baselines import FreeQatAllocator, MatchedRandomAllocator
    from fedhq_lightning.allocation.boundary import Boundary
    from fedhq_lightning.allocation.fixed import FixedAllocator
    from fedhq_lightning.allocation.hybrid import HybridAllocator
    from fedhq_lightning.allocation.late import LateQatAllocator
    from fedhq_lightning.allocation.protocol import AllocationContext, Allocator

__all__ = [
    "AllocationContext",
    "Allocator",
    "Boundary",
    "FixedAllocator",
    "FreeQatAllocator",
    "HybridAllocator",
    "LateQatAllocator",
    "MatchedRandomAllocator",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.allocation.baselines": ["FreeQatAllocator", "MatchedRandomAllocator"],
        "fedhq_lightning.allocation.boundary": ["Boundary"],
        "fedhq_lightning.allocation.fixed": ["FixedAllocator"],
        "fedhq_lightning.allocation.hybrid": ["HybridAllocator"],
        "fedhq_lightning.allocation.late": ["LateQatAllocator"],
        "fedhq_lightning.allocation.protocol": ["AllocationContext", "Allocator"],
    },
)
