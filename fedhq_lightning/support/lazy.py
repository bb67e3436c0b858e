"""Names that a package offers and loads when one of them is first used (PEP 562), so that importing it is cheap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def on_first_use(
    package: str, names_of_module: Mapping[str, Sequence[str]], along: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names live in its modules.

    Type checkers see none of it: a package imports the same names under `TYPE_CHECKING` and lists them in `__all__`.

    Args:
        package: The package's `__name__`.
        names_of_module: Module to the names that it holds.
        along: A module that is imported with whichever name is used first, for what it registers.

    Example::

        __getattr__, __dir__ = on_first_use(__name__, {"fedhq_lightning.quantize.scheme": ["QuantScheme"]})
    """
    module_of = {name: module for module, names in names_of_module.items() for name in names}
    namespace = vars(sys.modules[package])

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        if along is not None:
            import_module(along)
        namespace[name] = value
        return value

    def names() -> list[str]:
        return sorted({*namespace, *module_of})

    return load, names
