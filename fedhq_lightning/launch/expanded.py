"""The paths of a recipe with `~` and variables of the environment put in; no other text of it takes any."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.run_names import run_meant
from fedhq_lightning.support.paths import UNRESOLVED, expand_if_given

FLEETS = ("trainer.fleet", "init_args.fleet")
RUNS = ("init_args.warm_start", "init_args.reference", "trainer.measured_seconds")
"""Runs; the first two are arguments of allocators, as they are called inside a list of callbacks."""

_PATHS = re.compile(r"(.*_)?(dir|root|path|paths|file|files|folder)|dirpath|filepath")
"""Names of arguments that are paths in whatever class, such as `data_dir`."""
_CLASS = "class_path"


def expanded(values: Namespace, where: str = "") -> Namespace:
    """A recipe's values with every path written out.

    Paths are values of a path's type, those under a path's name (`data_dir`, `root`, `...path`), fleets, and the runs
    that allocators are given.

    Args:
        values: As parsed.
        where: Their dotted key.

    Raises:
        ConfigurationError: A variable that is not set, or `${...}` in any text.
    """
    found = values.clone()
    for key, value in values.items():
        name = key.rpartition(".")[2]
        is_path = key in FLEETS or key in RUNS or (name != _CLASS and _PATHS.fullmatch(name) is not None)
        found[key] = _expanded(value, f"{where}{key}".replace("init_args.", ""), is_path)
        if key in RUNS:
            found[key] = _found(found[key])
    return found


def _found(runs: Any) -> Any:
    """The folders of the runs that are given by their names."""
    if isinstance(runs, list):
        return [_found(each) for each in runs]
    return run_meant(runs) if isinstance(runs, str) else runs


def _expanded(value: Any, key: str, is_path: bool) -> Any:
    if isinstance(value, Namespace):
        return expanded(value, f"{key}.")
    if isinstance(value, list):
        return [_expanded(each, key, is_path) for each in value]
    if isinstance(value, Mapping):
        return {
            _expanded(name, key, is_path): _expanded(each, key if is_path else f"{key}.{name}", is_path)
            for name, each in value.items()
        }
    if is_path or isinstance(value, Path):
        return expand_if_given(value, key)
    if isinstance(value, str) and (match := UNRESOLVED.search(value)):
        raise ConfigurationError(
            f"{key} {value!r}: {match[0]} is not resolved: recipes have no interpolation; write the value itself"
        )
    return value
