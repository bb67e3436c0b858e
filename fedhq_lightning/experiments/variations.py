"""Keys of a recipe that a comparison varies: a resolved recipe for each point of their grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import yaml

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe.identity import TRAINER_SETTINGS_THAT_CHANGE_NO_BIT
from fedhq_lightning.recipe.keys import locate, short_names, value_at
from fedhq_lightning.support.yaml_text import parse_yaml

_EXAMPLE = "--vary trainer.aggregator=FedAvg,FedProx"
_FIXED = {
    "trainer.seed": "seeds are given by --seeds",
    "trainer.monitor": "runs would not be comparable",
    "trainer.monitor_mode": "runs would not be comparable",
    **{f"trainer.{name}": "it changes nothing that is compared" for name in TRAINER_SETTINGS_THAT_CHANGE_NO_BIT},
}


@dataclass(frozen=True)
class Variation:
    """One point of the grid.

    Attributes:
        text: Its resolved recipe.
        name: What varies, such as `aggregator=FedProx, scheme=w2a8`; empty where nothing does.
        values: Each varied key and what it holds in the resolved recipe.
    """

    text: str
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Axis:
    """A varied key, and its values as text."""

    key: str
    values: Sequence[str]


def variations(name: str, text: str, overrides: Sequence[str], given: Sequence[str]) -> list[Variation]:
    """Every combination of the values.

    Args:
        name: Of the recipe.
        text: The recipe as `resolve` takes it.
        overrides: Values of the recipe that all share, `--KEY=VALUE`.
        given: What varies, `KEY=VALUE,VALUE`, each as the command line takes it; the first varies slowest.

    Raises:
        ConfigurationError: An unknown key or a value that it cannot have; one value only, or one twice; a key that
            cannot be varied, or two of which one is a part of the other.
    """
    axes = [_axis(each) for each in given]
    for one, other in combinations([axis.key for axis in axes], 2):
        if f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}."):
            raise ConfigurationError(f"--vary {one} and --vary {other}: one is the other, or a part of it; give one")
    names = short_names([axis.key for axis in axes])
    found: list[Variation] = []
    for point in product(*(axis.values for axis in axes)):
        own = {axis.key: value for axis, value in zip(axes, point, strict=True)}
        try:
            resolved = resolve(name, text, [*overrides, *(f"--{key}={value}" for key, value in own.items())])
            content = parse_yaml(resolved.recipe.text)
            values = {key: value_at(content, locate(content, key)) for key in own}
        except ConfigurationError as error:
            said = " ".join(f"{key}={value}" for key, value in own.items())
            raise ConfigurationError(f"--vary {said}: {error}" if said else str(error)) from error
        shown = [f"{short}={_shown(values[key], own[key])}" for short, key in zip(names, own, strict=True)]
        found.append(Variation(resolved.recipe.text, ", ".join(shown), values))
    _check_different(found)
    return found


def _axis(given: str) -> _Axis:
    key, sign, listed = given.partition("=")
    key = key.removeprefix("--")
    if not (key and sign):
        raise ConfigurationError(f"--vary {given!r}: give a key of the recipe and its values, such as {_EXAMPLE}")
    if reason := _FIXED.get(".".join(key.split(".")[:2])):
        raise ConfigurationError(f"--vary {key}: {reason}; give another key")
    values = _split(key, listed)
    if len(values) < 2:
        instead = f", or set it for all runs with --{key}={values[0]}" if values else ""
        raise ConfigurationError(
            f"--vary {given}: {len(values) or 'no'} value{'' if values else 's'}, so nothing varies; give two or "
            f"more, separated by commas{instead}"
        )
    return _Axis(key, values)


def _split(key: str, listed: str) -> list[str]:
    """The text of each value, at the commas that are outside of brackets and quotes."""
    text = f"[{listed}]"
    try:
        parse_yaml(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"--vary {key}={listed}: the values are no YAML: {error}") from error
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(text):
        raise ConfigurationError(f"--vary {key}={listed}: give the values as a list without brackets, as in {_EXAMPLE}")
    return [text[each.start_mark.index : each.end_mark.index] for each in node.value]


def _shown(value: Any, text: str) -> str:
    """A value for people: a class by its last name, with the arguments that were given to it."""
    if not (isinstance(value, Mapping) and "class_path" in value):
        return " ".join(text.split())
    written = parse_yaml(text)
    arguments = written.get("init_args", {}) if isinstance(written, Mapping) else {}
    listed = ", ".join(f"{name}={each}" for name, each in arguments.items())
    name = str(value["class_path"]).rpartition(".")[2]
    return f"{name}({listed})" if listed else name


def _check_different(found: Sequence[Variation]) -> None:
    for one, other in combinations(found, 2):
        if one.name == other.name:
            raise ConfigurationError(f"--vary: {one.name} is given twice; give each value once")
        if one.values == other.values:
            raise ConfigurationError(f"--vary: {one.name} and {other.name} are the same recipe; give one of them")
