"""Plain descriptions of settings: what a run was started with, and whether a resumed one was started the same."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fedhq_lightning.errors import ConfigurationError

_DEPTH = 4
_LIGHTNING_OWN = ("training", "prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices")


def describe(value: Any, depth: int = _DEPTH) -> Any:
    """A setting as plain YAML values: objects become `class_path` and the simple values that they hold."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item, depth - 1) for key, item in value.items()}
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
    return "# Started from Python: what was set, for the record.\n" + str(
        yaml.safe_dump(dict(described), sort_keys=False)
    )


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], free: frozenset[str]) -> None:
    """Refuse to resume with other settings.

    Args:
        before: Description in the checkpoint.
        now: Description of this run.
        free: Dotted names that do not change what is computed.

    Raises:
        ConfigurationError: Settings differ; the first three are named.
    """
    old, new = _flatten(before), _flatten(now)
    changed = [name for name in sorted({*old, *new}) if name not in free and old.get(name) != new.get(name)]
    if changed:
        listed = "; ".join(f"{name} was {old.get(name)!r}, is now {new.get(name)!r}" for name in changed[:3])
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigurationError(
            f"resuming with another recipe: {listed}{more}; resume with the run's own recipe, or start a new run"
        )


def _settings(value: Any) -> dict[str, Any]:
    """The simple values that an object holds; private ones only of partitioners, which have no others."""
    private = type(value).__module__.startswith("flwr_datasets")
    held = getattr(value, "__dict__", {})
    names = [name for name in held if private or not name.startswith("_")]
    return {name: held[name] for name in names if name not in _LIGHTNING_OWN and _is_setting(held[name])}


def _is_setting(value: Any) -> bool:
    if isinstance(value, str | int | float | bool | None | Path | partial):
        return True
    if isinstance(value, Mapping):
        return all(_is_setting(item) for item in value.values())
    if isinstance(value, list | tuple):
        return len(value) <= 100 and all(_is_setting(item) for item in value)
    return type(value).__module__.startswith(("fedhq_lightning", "flwr_datasets"))


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flatten(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat
