"""Plain descriptions of settings: what a run was started with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedhq_lightning.recipe.files import STARTED_FROM_PYTHON
from fedhq_lightning.support.lightnings import AnyDataModule, AnyModule

_DEPTH = 4
# Subclasses of text and numbers become the thing itself, which is all that YAML and checkpoints hold.
_PLAIN: dict[type, Callable[[Any], Any]] = {str: str.__str__, int: int.__int__, float: float.__float__}
_LIGHTNING_OWN = ("training", "prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices")


@dataclass(frozen=True)
class Recipe:
    """Name and resolved text of the recipe that a run was started from; the command line sets `trainer.recipe`."""

    name: str
    text: str


def describe(value: Any, depth: int = _DEPTH) -> Any:
    """A setting as plain YAML values: objects become `class_path` and the simple values that they hold."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Enum):
        return describe(value.value, depth)
    if isinstance(value, bool | None):
        return value
    for kind, plain in _PLAIN.items():
        if isinstance(value, kind):
            return plain(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(describe(key, 0)): describe(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(item, depth - 1) for item in value]
    if isinstance(value, partial):
        arguments = {"args": [describe(item, depth - 1) for item in value.args], **value.keywords}
        return {"class_path": _path(value.func), "init_args": describe(arguments, depth - 1)}
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return _path(value)
    held = _settings(value) if depth > 0 else {}
    return {"class_path": _path(type(value))} | {name: describe(held[name], depth - 1) for name in sorted(held)}


def text_of(described: Mapping[str, Any]) -> str:
    """`recipe.yaml` of a run that was started from Python: it documents the run, `fedhq run` cannot rerun it."""
    return f"{STARTED_FROM_PYTHON}: what was set, for the record; not a recipe that `fedhq run` could run.\n" + str(
        yaml.safe_dump(dict(described), sort_keys=False)
    )


def _settings(value: Any) -> dict[str, Any]:
    """The simple values that an object was made with: what it holds under the names of its constructor's arguments.

    What else it holds may change while it is used: a data module's `setup` may set what it likes. A module is copied
    before it is used, so all of its public values count. Both have Lightning's `hparams`.
    """
    held = getattr(value, "__dict__", {})
    if isinstance(value, AnyModule):
        names = {name: name for name in held if not name.startswith("_") and name not in _LIGHTNING_OWN}
    else:
        own = [each for each in type(value).__mro__ if "__init__" in vars(each)]
        arguments = {name for each in own for name in inspect.signature(vars(each)["__init__"]).parameters}
        names = {name: name.removeprefix("_") for name in held if name.removeprefix("_") in arguments}
    if isinstance(value, AnyModule | AnyDataModule):
        saved = held.get("_hparams", {})  # to ask for `hparams` would leave an empty one on the object
        held = {**saved, **held}
        names |= {name: name for name in saved}
    return {shown: held[name] for name, shown in names.items() if _is_setting(held[name])}


def _is_setting(value: Any) -> bool:
    if isinstance(value, str | int | float | bool | None | Enum | Path | partial | np.ndarray | np.generic):
        return True
    if isinstance(value, Mapping):
        return all(_is_setting(item) for item in value.values())
    if isinstance(value, list | tuple):
        return len(value) <= 100 and all(_is_setting(item) for item in value)
    return type(value).__module__.startswith(("fedhq_lightning", "flwr_datasets"))


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
