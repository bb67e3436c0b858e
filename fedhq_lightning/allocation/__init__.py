"""Who trains how: the allocator protocol and the allocators. Nothing here imports Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhq_lightning.allocation.fixed import FixedAllocator
    from fedhq_lightning.allocation.protocol import AllocationContext, Allocator

__all__ = ["AllocationContext", "Allocator", "FixedAllocator"]

_MODULE_OF_NAME = {
    "AllocationContext": "fedhq_lightning.allocation.protocol",
    "Allocator": "fedhq_lightning.allocation.protocol",
    "FixedAllocator": "fedhq_lightning.allocation.fixed",
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
