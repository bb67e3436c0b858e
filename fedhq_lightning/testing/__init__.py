"""Contracts as test classes: inherit from one, say how your object is made, and pytest runs what it must keep to.

`AllocatorContract`, `AggregatorContract` and `DataModuleContract` are run by this package's own suite over everything
that it ships.
"""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

try:
    import pytest
except ImportError as error:
    raise ImportError(
        "fedhq_lightning.testing runs under pytest, which is not installed: pip install pytest"
    ) from error

if TYPE_CHECKING:
    from fedhq_lightning.testing.aggregators import AggregatorContract
    from fedhq_lightning.testing.allocators import AllocatorContract
    from fedhq_lightning.testing.data_modules import DataModuleContract

__all__ = ["AggregatorContract", "AllocatorContract", "DataModuleContract"]

_NAMES = {
    "fedhq_lightning.testing.aggregators": ["AggregatorContract"],
    "fedhq_lightning.testing.allocators": ["AllocatorContract"],
    "fedhq_lightning.testing.data_modules": ["DataModuleContract"],
}

# Pytest explains the failed assertions of test files only, and of modules that are named before they are imported.
pytest.register_assert_rewrite(*_NAMES)

__getattr__, __dir__ = on_first_use(__name__, _NAMES)
