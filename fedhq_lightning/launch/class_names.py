"""Short names of classes: `MLP` in a recipe or an override is `fedhq_lightning.models.MLP`.

jsonargparse knows a class by its last name only once the class is imported, and takes no name that two classes have, as
allocators and the callbacks made of them do. What a recipe may name from these packages is what they make public.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.yaml_text import parse_yaml

_PARTS = {
    "aggregator": "fedhq_lightning.federated.algorithms",
    "robust_rule": "fedhq_lightning.federated.robust",
}
"""Keys of the trainer whose values are classes of one package, also without `class_path`."""
_PACKAGES = ("fedhq_lightning.models", "fedhq_lightning.data", "fedhq_lightning.callbacks", *_PARTS.values())
_CLASS_KEYS = re.compile(
    r"model|data|(data\.)?(.+\.)?datamodule|trainer\.(callbacks\+?|" + "|".join(_PARTS) + r")|.+\.class_path"
)
"""Keys whose values are classes of these packages."""
_NAME = re.compile(r"[A-Z]\w*")


def with_full_names(content: Any) -> Any:
    """A copy of a recipe, or of a part of it, with every `class_path` written out.

    Args:
        content: Plain values.
    """
    if isinstance(content, list):
        return [with_full_names(each) for each in content]
    if not isinstance(content, Mapping):
        return content
    return {
        key: _full(each, _PARTS.get(key))
        if key in ("class_path", *_PARTS) and isinstance(each, str)
        else with_full_names(each)
        for key, each in content.items()
    }


def override_with_full_names(override: str) -> str:
    """An override, `--KEY=VALUE`, with the classes in its value written out."""
    key, separator, value = override.partition("=")
    if separator and _CLASS_KEYS.fullmatch(key.removeprefix("--")) and _NAME.fullmatch(value):
        return f"{key}={_full(value, _PARTS.get(key.rpartition('.')[2]))}"
    if "class_path" not in value:
        return override
    try:
        given = parse_yaml(value)
    except ConfigurationError:
        return override  # the parser says what is wrong with it
    full = with_full_names(given)
    return override if full == given else f"{key}={json.dumps(full)}"


def _full(name: Any, package: str | None = None) -> Any:
    """The whole path of a class of one package, or of any of them; whatever else it is, as it is."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        return name
    packages = _PACKAGES if package is None else [package]
    return next((f"{package}.{name}" for package in packages if name in import_module(package).__all__), name)
