"""The text of a module once more, with the classes of `pytorch_lightning` in the place of those of `lightning`."""

import inspect
import re
import sys
from functools import cache
from types import ModuleType
from typing import Any

from . import styles, styles_of_layers, styles_of_training

_AGAIN = "_of_pytorch_lightning"


@cache
def again(module: ModuleType) -> ModuleType:
    """The module as it would be, had its author written `import pytorch_lightning as L`."""
    made = ModuleType(module.__name__ + _AGAIN)
    made.__package__ = module.__package__
    sys.modules[made.__name__] = made  # where its siblings and dataclasses look for it
    text = re.sub(r"\blightning\.pytorch\b", "pytorch_lightning", inspect.getsource(module))
    text = text.replace("import lightning as L", "import pytorch_lightning as L")
    text = text.replace("from .styles import", f"from .styles{_AGAIN} import")
    exec(compile(text, str(module.__file__), "exec"), vars(made))
    return made


def styles_again() -> dict[str, Any]:
    """As `styles.STYLES`, by the same names."""
    for module in (styles, styles_of_layers, styles_of_training):
        again(module)
    held: dict[str, Any] = again(styles).STYLES
    return held
