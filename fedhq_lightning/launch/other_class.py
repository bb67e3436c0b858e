"""A recipe with another class in place of one of its own: which of the recipe's arguments the other one gets.

jsonargparse hands on every value, defaults of the old class included, whose name and type fit. That makes a learning
rate meant for one optimizer that of another, without a word. Here a value is kept for a reason: the new class has no
default for it, or both classes come from one of the same family (all of this package's models do), where a name means
the same, and the recipe says it. All others are the new class's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from fedhq_lightning.recipe.keys import Place, dotted, value_at, with_values
from fedhq_lightning.support.yaml_text import parse_yaml

_FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "builtins", "abc")


@dataclass(frozen=True)
class OtherClass:
    """A place in a recipe where flags have put another class.

    Attributes:
        place: Of the class, keys from the recipe's root.
        name: The class, by its whole path.
        kept: Arguments whose values are the recipe's.
        left: Arguments of both classes whose values are the new class's own.
        without_default: Those of `kept` that the class cannot do without.
    """

    place: Place
    name: str
    kept: frozenset[str]
    left: frozenset[str]
    without_default: frozenset[str]

    def told(self, content: Mapping[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        """In one line, which values of the recipe stay and which do not, where that makes a difference; else empty.

        Args:
            content: The recipe as it is written.
            before: The recipe with every default, jsonargparse's way.
            now: The same by the rule above.
        """
        written, handed, own = (value_at(each, (*self.place, "init_args")) or {} for each in (content, before, now))
        key, short = dotted(self.place), self.name.rpartition(".")[2]
        defaults = _defaults(_class(self.name))
        kept = [
            f"{key}.{name}={_shown(own[name])} ({short} has no default)"
            if name in self.without_default
            else f"{key}.{name}={_shown(own[name])} ({short}: {_shown(defaults[name])})"
            for name in sorted(self.kept)
            if name in self.without_default or (name in defaults and _shown(own[name]) != _shown(defaults[name]))
        ]
        left = [name for name in sorted(self.left & written.keys()) if handed[name] != own.get(name)]
        said = [f"kept from the recipe: {', '.join(kept)}"] if kept else []
        if left:
            listed = ", ".join(f"{key}.{name}={_shown(handed[name])} ({short}: {_shown(own[name])})" for name in left)
            flag = f"--{key}.{left[0]}={_shown(handed[left[0]])}"
            said.append(f"not kept from the recipe, since it is of another class: {listed}; {flag} keeps it")
        return "; ".join(said)


def other_classes(
    content: Mapping[str, Any], base: Mapping[str, Any], values: Mapping[str, Any], overrides: Sequence[str]
) -> list[OtherClass]:
    """Where flags have put another class, and what it gets.

    Args:
        content: The recipe as it is written.
        base: The recipe with every default.
        values: The same with the flags, jsonargparse's way.
        overrides: The flags.
    """
    found = []
    for place, old, new in _changes(base, values):
        classes = _class(old), _class(new)
        if classes[0] is classes[1]:  # by another path
            continue
        handed = (value_at(values, place) or {}).get("init_args") or {}
        given = {name for name in handed if _is_given(place, name, overrides)}
        written = (value_at(content, place) or {}).get("init_args") or {}
        defaults = _defaults(classes[1])
        needed = {name for name in handed if defaults.get(name) is Parameter.empty} - given
        alike = {name for name in handed if name in written and _are_kin(*classes)} - given
        left = handed.keys() - given - needed - alike
        found.append(OtherClass(place, new, frozenset(needed | alike), frozenset(left), frozenset(needed)))
    return found


def without_left(values: Mapping[str, Any], others: Sequence[OtherClass]) -> dict[str, Any]:
    """The recipe with flags, without the arguments that the new classes set themselves."""
    changed = copy.deepcopy(dict(values))
    for other in others:
        node = dict(value_at(changed, other.place))
        node["init_args"] = {name: value for name, value in node["init_args"].items() if name not in other.left}
        changed = with_values(changed, {other.place: node})
    return changed


def _changes(base: Any, values: Any, place: Place = ()) -> Iterator[tuple[Place, str, str]]:
    """Places with another class, the old and the new one; nothing below such a place."""
    if not (isinstance(base, Mapping) and isinstance(values, Mapping)):
        return
    old, new = base.get("class_path"), values.get("class_path")
    if old and new and old != new:
        yield place, old, new
        return
    for key in values:
        yield from _changes(base.get(key), values[key], (*place, key))


def _is_given(place: Place, name: str, overrides: Sequence[str]) -> bool:
    """Whether a flag sets an argument of the class at a place, by a key of its own or together with the class."""
    of_class = dotted(place)
    for override in overrides:
        key, _, value = override.removeprefix("--").partition("=")
        key = ".".join(part for part in key.split(".") if part != "init_args")
        if f"{key}.".startswith(f"{of_class}.{name}."):
            return True
        if key == of_class and value.lstrip().startswith("{"):
            return name in (parse_yaml(value).get("init_args") or {})
    return False


def _are_kin(old: Any, new: Any) -> bool:
    """Whether both come from a class that takes arguments and is no framework's."""
    if not (isinstance(old, type) and isinstance(new, type)):
        return False
    shared = [each for each in old.__mro__ if each in new.__mro__ and "__init__" in vars(each)]
    own = [each for each in shared if each.__module__.partition(".")[0] not in _FRAMEWORKS]
    return any(_names(vars(each)["__init__"]) for each in own)


def _names(constructor: Any) -> list[str]:
    stars = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [each.name for each in list(signature(constructor).parameters.values())[1:] if each.kind not in stars]


def _defaults(function: Any) -> dict[str, Any]:
    """Default of each argument, those that `**kwargs` hand to base classes included; `Parameter.empty` without one."""
    found: dict[str, Any] = {}
    for each in getattr(function, "__mro__", [function]) if callable(function) else []:
        arguments = signature(each).parameters.values()
        found = {argument.name: argument.default for argument in arguments} | found
        if all(argument.kind != Parameter.VAR_KEYWORD for argument in arguments):
            break
    return found


def _class(path: str) -> Any:
    """What a path names; it has been imported before, by jsonargparse."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name, None)


def _shown(value: Any) -> str:
    """As it is written in YAML."""
    return str(value) if isinstance(value, str) else repr(list(value) if isinstance(value, tuple) else value)
