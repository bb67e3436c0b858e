"""Dotted keys of a recipe, in the short form of the command line, and the places that they name."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.yaml_text import parse_yaml

Place: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from a recipe's root to a value."""

_CLASS_KEYS = ("class_path", "init_args")


def locate(content: Mapping[str, Any], key: str, is_resolved: bool = True) -> Place:
    """Where a key points to.

    `init_args` may be left out. In a list, such as `trainer.callbacks`, a part is a position (`0`), the name of a class
    (`HybridAllocator`), or an argument that one class of the list has. What is null so far may be given parts.

    Args:
        content: A recipe.
        key: Such as `model.lr` or `trainer.callbacks.HybridAllocator.boundary.slack`.
        is_resolved: Every default is filled in, so that there is no key that it does not have.

    Raises:
        ConfigurationError: There is no such key, or it names several places.
    """
    place: Place = ()
    node: Any = content
    parts = key.split(".")
    for position, part in enumerate(parts):
        if isinstance(node, list):
            place, node, is_used = _into_list(place, node, part, key)
            if is_used:
                continue
        if isinstance(node, Mapping) and "class_path" in node and part not in _CLASS_KEYS:
            place, node = (*place, "init_args"), {} if node.get("init_args") is None else node["init_args"]
        if isinstance(node, Mapping):
            if is_resolved and part not in node and _is_closed(place):
                raise ConfigurationError(
                    f"unknown key {key!r}: {dotted(place) or 'a recipe'} has {', '.join(map(str, node))}"
                    f"{nearest(part, map(str, node))}"
                )
            place, node = (*place, part), node.get(part)
        elif node is None:
            return (*place, *parts[position:])
        else:
            raise ConfigurationError(
                f"unknown key {key!r}: {dotted(place)} is {node!r}, which has no parts; search {dotted(place)} as a "
                "whole, or write it as a mapping in the recipe"
            )
    return place


def with_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe as it is written, with values of the command line in it, and no default filled in.

    Args:
        content: The recipe.
        overrides: `--KEY=VALUE`; the values are YAML.

    Raises:
        ConfigurationError: An override is written otherwise, or its key leads through what has no parts.
    """
    changed = dict(content)
    for override in overrides:
        key, separator, value = override.removeprefix("--").partition("=")
        if not (separator and override.startswith("--")):
            raise ConfigurationError(f"unknown argument {override!r}: a value is changed by --KEY=VALUE")
        changed = with_values(changed, {locate(changed, key, is_resolved=False): parse_yaml(value)})
    return changed


def value_at(content: Any, place: Place) -> Any:
    """The value there; None where nothing is."""
    for part in place:
        if isinstance(content, list) and isinstance(part, int):
            content = content[part]
        else:
            content = content.get(part) if isinstance(content, Mapping) else None
    return content


def with_values(content: Mapping[str, Any], values: Mapping[Place, Any]) -> dict[str, Any]:
    """A copy with other values; what is null on the way becomes a mapping."""
    changed: dict[str, Any] = copy.deepcopy(dict(content))
    for place, value in values.items():
        node: Any = changed
        for part in place[:-1]:
            if isinstance(node, Mapping) and node.get(part) is None:
                node[part] = {}  # type: ignore[index]  # plain dicts, as YAML gives them
            node = node[part]
        node[place[-1]] = copy.deepcopy(value)
    return changed


def short_names(keys: Sequence[str]) -> list[str]:
    """The keys for people: each without what the others do not need to tell it from them."""
    parts = [key.split(".") for key in keys]
    names = []
    for own in parts:
        lengths = (n for n in range(1, len(own)) if sum(key[-n:] == own[-n:] for key in parts) == 1)
        names.append(".".join(own[-next(lengths, len(own)) :]))
    return names


def dotted_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every key, in the short form that the command line takes too: without `init_args` and list positions."""
    keys = []
    for key, value in values.items():
        path = prefix.removesuffix(".") if key == "init_args" else f"{prefix}{key}"
        keys.append(path)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                keys += dotted_keys(each, f"{path}.")
    return list(dict.fromkeys(keys))


def _into_list(place: Place, items: Sequence[Any], part: str, key: str) -> tuple[Place, Any, bool]:
    """The item that a part names, and whether the part is used up by that."""
    if part.isdigit():
        if int(part) >= len(items):
            raise ConfigurationError(f"unknown key {key!r}: {dotted(place)} has {len(items)} entries, from 0")
        return (*place, int(part)), items[int(part)], True
    names = [str(item.get("class_path", "")).rpartition(".")[2] if isinstance(item, Mapping) else "" for item in items]
    named = [index for index, name in enumerate(names) if name == part]
    having = [index for index, item in enumerate(items) if part in _arguments(item)]
    found = named or having
    if len(found) > 1:
        raise ConfigurationError(
            f"key {key!r}: {len(found)} entries of {dotted(place)} fit {part!r}; name one by its position, such as "
            f"{dotted((*place, found[0]))}"
        )
    if not found:
        arguments = [name for item in items for name in _arguments(item)]
        allowed = [*filter(None, names), *arguments]
        raise ConfigurationError(
            f"unknown key {key!r}: {dotted(place)} has {', '.join(allowed) or 'nothing'}{nearest(part, allowed)}"
        )
    return (*place, found[0]), items[found[0]], bool(named)


def _arguments(item: Any) -> Mapping[str, Any]:
    """What a class of a list is given; nothing where something else than a mapping is written."""
    arguments = item.get("init_args") if isinstance(item, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def _is_closed(place: Place) -> bool:
    """Whether a resolved recipe names every key there is at this place; other mappings may take keys of any name."""
    return place in ((), ("trainer",)) or place[-1] == "init_args"


def dotted(place: Place) -> str:
    """A place as a key of the command line."""
    return ".".join(str(part) for part in place if part != "init_args")
