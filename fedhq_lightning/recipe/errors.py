"""One readable line from what jsonargparse says about a recipe.

jsonargparse reports as an indented tree: keys and classes on the way down, and at each Union one branch per allowed
type. What the user meant is the branch that got furthest.
"""

from __future__ import annotations

import ast
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.recipe.lightning_names import instead_of
from fedhq_lightning.support.extras import EXTRAS, install_command

_SHIPPED = {
    "model": "fedhq_lightning.models",
    "data": "fedhq_lightning.data",
    "data.datamodule": "fedhq_lightning.data",
    "data.partitioner": "flwr_datasets.partitioner",
    "trainer.callbacks": "fedhq_lightning.callbacks",
    "trainer.aggregator": "fedhq_lightning.federated.algorithms",
    "trainer.privacy": "fedhq_lightning.federated.privacy",
    "trainer.secure_aggregation": "fedhq_lightning.federated.secure",
    "trainer.robust_rule": "fedhq_lightning.federated.robust",
}
"""Where the classes are that a key is most often given, each in the module's `__all__`."""
_MOST_LISTED = 16
_CLASS_KEYS = ("class_path", "init_args")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "Sequence": "a list",
    "list": "a list",
    "Mapping": "a mapping",
    "dict": "a mapping",
}
_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':")
_GIVEN = re.compile(r"Given value: (.*)")
_NESTED = re.compile(r"NestedArg\(key='.*', val='(.*)'\)")
_EXPECTED = re.compile(r"Expected an? (?:<class '([^']+)'>|(typing\.\S+\[.*?\]))(?:\. Got value: (.*))?$")
_QUOTED = re.compile("'(.+?)'")
_NOT_VALID = re.compile(r"Not a valid subclass of (\w+)")
_NO_PATH = re.compile(r"Expected a dot import path string: (.*)")
_NO_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_NO_MODULE = re.compile(r"No module named '([^']+)'")
_NOT_SUBCLASS = re.compile(r"Import path (\S+) does not correspond to a subclass of (\S+)")
_MISSING = re.compile(r"the following arguments are required: (.+)")
_OPTION = re.compile(r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (\S+)")
_INCOMPLETE = re.compile(r"argument (\S+): expected one argument")


def explain(error: Exception, known_keys: Sequence[str]) -> str:
    """The key, what was given, what is allowed.

    Args:
        error: From parsing a recipe or its overrides.
        known_keys: Dotted keys of the parser, for the nearest name.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigurationError):
            return str(cause)
        if failure := _failure_while_importing(cause):
            key = _KEY.search(str(error))
            return f"{key[1]}: {failure}" if key else failure
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if not isinstance(error, ArgumentError):
        return text
    if match := _UNRECOGNIZED.search(text):
        given = match[1].partition("=")[0]
        if not given.startswith("--"):
            return f"unknown argument {given!r}: a value is changed by --KEY=VALUE, such as --trainer.max_rounds=5"
        return unknown_key(given.removeprefix("--"), known_keys)
    if match := _INCOMPLETE.search(text):
        return f"{match[1]} needs a value: {match[1]}=VALUE"
    found = list(_findings(_tree(text), _Finding()))
    depth = max(finding.depth for finding in found)
    return _sentence([finding for finding in found if finding.depth == depth], known_keys)


def _failure_while_importing(cause: BaseException) -> str | None:
    """File, line and error, where code of a module that a recipe names failed while it was imported."""
    if isinstance(cause, SyntaxError):
        return f"{_shown_path(cause.filename)}, line {cause.lineno}: {type(cause).__name__}: {cause.msg}"
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if frame.name == "<module>"]
    if not frames:
        return None
    said = (str(cause).splitlines() or [""])[0]
    return f"{_shown_path(frames[-1].filename)}, line {frames[-1].lineno}: {type(cause).__name__}: {said}"


def _shown_path(file: str | None) -> str:
    path = Path(file or "?")
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def unknown_key(key: str, known_keys: Sequence[str]) -> str:
    """Says that nothing is called `key`, and what beside it is called nearly so, or else all that is there."""
    parent, _, name = key.rpartition(".")
    if parent == "trainer" and (instead := instead_of(name)):
        return f"unknown key {key!r}: {instead}"
    beside = {known.rpartition(".")[2]: known for known in known_keys if known.rpartition(".")[0] == parent}
    if parent and beside:
        hint = _nearest(name, beside) or f"; allowed are {', '.join(beside.values())}"
    else:
        tops = list(dict.fromkeys(known.partition(".")[0] for known in known_keys))
        hint = nearest(key, known_keys) or f"; allowed are {', '.join(tops)}"
    return f"unknown key {key!r}{hint}"


def check_class_nodes(content: Any, where: str = "") -> None:
    """Refuse keys beside `class_path` and `init_args`, at any depth of a recipe; jsonargparse cannot say which one.

    Raises:
        ConfigurationError: There is one.
    """
    if isinstance(content, Mapping):
        for key, value in content.items():
            if "class_path" in content and key not in _CLASS_KEYS:
                hint = nearest(str(key), _CLASS_KEYS) or "; arguments of a class belong under init_args"
                raise ConfigurationError(f"{where}: unknown key {key!r} beside class_path{hint}")
            check_class_nodes(value, f"{where}.{key}".lstrip("."))
    elif isinstance(content, list):
        for each in content:
            check_class_nodes(each, where)


def check_all_used(given: Any, used: Any, where: str = "") -> None:
    """Refuse what jsonargparse left out without a word: unknown keys that hold `{}`.

    Args:
        given: A recipe's content.
        used: The same, parsed.
        where: Dotted key of both.

    Raises:
        ConfigurationError: Something was left out.
    """
    if not (isinstance(given, Mapping) and isinstance(used, Mapping)):
        return
    prefix = f"{where}." if where else ""
    for key, value in given.items():
        if key in used:
            check_all_used(value, used[key], f"{prefix}{key}")
        elif value == {} and key != "init_args":
            raise ConfigurationError(unknown_key(f"{prefix}{key}", [f"{prefix}{known}" for known in used]))


@dataclass(frozen=True)
class _Finding:
    """One branch's end: where, in which class, what was said about which value."""

    keys: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    given: str = ""
    text: str = ""

    @property
    def depth(self) -> int:
        return len(self.keys) + len(self.classes)


@dataclass(frozen=True)
class _Line:
    text: str
    below: list[_Line]


def _tree(text: str) -> list[_Line]:
    """Lines by indentation, without the dashes of lists."""
    root: list[_Line] = []
    open_lines: list[tuple[int, list[_Line]]] = [(-1, root)]
    for line in filter(str.strip, text.splitlines()):
        indentation = len(line) - len(line.lstrip())
        while open_lines[-1][0] >= indentation:
            open_lines.pop()
        node = _Line(line.strip().removeprefix("- "), [])
        open_lines[-1][1].append(node)
        open_lines.append((indentation, node.below))
    return root


def _findings(lines: list[_Line], at: _Finding) -> Iterator[_Finding]:
    for line in lines:
        if match := _GIVEN.fullmatch(line.text):
            nested = _NESTED.fullmatch(match[1])
            at = replace(at, given=nested[1] if nested else match[1])
    for line in lines:
        if match := _KEY.fullmatch(line.text):
            yield from _findings(line.below, replace(at, keys=(*at.keys, match[1])))
        elif match := _CLASS.fullmatch(line.text):
            yield from _findings(line.below, replace(at, classes=(*at.classes, match[1])))
        elif line.text == "Errors:" or line.text.startswith("Does not validate"):
            yield from _findings(line.below, at)
        elif not line.text.startswith(("Subtypes:", "Given value", "Subclass types", "a ")):
            yield replace(at, text=line.text)


def _sentence(found: list[_Finding], known_keys: Sequence[str]) -> str:
    first = found[0]
    where = ".".join(first.keys)
    for finding in found:
        if match := _OPTION.search(finding.text):
            return _unknown_option(match[1] or where, match[2], first.classes, known_keys)
        if reason := _about_class(where, finding.text):
            return f"{where}: {reason}"
    allowed, given = [], first.given
    for finding in found:
        if match := _EXPECTED.fullmatch(finding.text):
            allowed.append(_type_name(match[1] or match[2]))
            given = match[3] or given
        elif match := _NOT_VALID.match(finding.text):
            allowed.append(match[1])
    if not allowed:
        return f"{where}: {first.text}" if where else first.text
    listed = " or ".join(dict.fromkeys(allowed))
    return f"{where} {_shown(given)}: must be {listed}{nearest(given, _QUOTED.findall(listed))}"


def _about_class(where: str, text: str) -> str | None:
    if match := _NO_ATTRIBUTE.search(text):
        names = _names_in(sys.modules.get(match[1]))
        return f"{match[1]} has no {match[2]!r}{nearest(match[2], names) or _listed('it has', names)}"
    if match := _NO_MODULE.search(text):
        top = match[1].partition(".")[0]
        hint = f"; {install_command(top)} brings it" if top in EXTRAS else ""
        return f"no module {match[1]!r} is installed or in the current directory{hint}"
    if match := _NOT_SUBCLASS.search(text):
        return f"{match[1]} is not a {match[2].rpartition('.')[2]}"
    if match := _MISSING.search(text):
        return f"{match[1]} is missing; give it in init_args"
    if match := _NO_PATH.search(text):
        if match[1].isidentifier() and find_spec(match[1]) is not None:
            return f"{match[1]!r} is a module; name a class in it: {match[1]}.CLASS"
        shipped = _SHIPPED.get(where)
        here = [] if shipped is None else [name for name in import_module(shipped).__all__ if name[0].isupper()]
        modules = _SHIPPED.values() if shipped is None else [shipped]
        full = {name: f"{module}.{name}" for module in modules for name in import_module(module).__all__}
        hint = _nearest(match[1], full) or _listed(f"{shipped} has", here)
        return f"{match[1]!r} is no class; give its whole path, such as package.module.Class{hint}"
    return None


def _names_in(module: Any) -> list[str]:
    """What a module offers: what it says, else the classes that it defines itself, else everything."""
    names = vars(module) if module is not None else {}
    defined = [name for name, each in names.items() if isinstance(each, type) and each.__module__ == module.__name__]
    return list(getattr(module, "__all__", None) or defined or [name for name in names if not name.startswith("_")])


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"; {what} {', '.join(names[:_MOST_LISTED])}{more}" if names else ""


def _nearest(word: str, full_names: Mapping[str, str]) -> str:
    """As `nearest`, but offers the full name of what is called nearly so."""
    matches = get_close_matches(word, full_names, n=1)
    return f"; did you mean {full_names[matches[0]]!r}?" if matches else ""


def _unknown_option(where: str, option: str, classes: tuple[str, ...], known_keys: Sequence[str]) -> str:
    if not classes:
        # Of a group that is unknown as a whole, jsonargparse names a key inside it.
        head = option.partition(".")[0]
        return unknown_key(f"{where}.{option}" if where else head, known_keys)
    module_name, _, class_name = classes[-1].rpartition(".")
    named = getattr(sys.modules.get(module_name), class_name, None)
    option = option.partition(".")[0]
    said = f"{where}: {class_name} has no {option!r}"
    if not callable(named):  # a recipe's own text looked like an error's
        return said
    allowed = list(_parameters(named))
    return f"{said}; it takes {', '.join(allowed)}{nearest(option, allowed)}"


def _parameters(function: Any) -> Iterator[str]:
    """Names of the arguments, those that `**kwargs` hand to base classes included."""
    for each in getattr(function, "__mro__", [function]):
        kinds = {name: argument.kind for name, argument in signature(each).parameters.items()}
        stars = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        yield from (name for name, kind in kinds.items() if kind not in stars)
        if Parameter.VAR_KEYWORD not in kinds.values():
            return


def _type_name(text: str) -> str:
    if text.startswith("typing.Literal["):
        return f"one of {text.removeprefix('typing.Literal[').removesuffix(']')}"
    name = text.rpartition(".")[2]
    return _TYPES.get(name, name)


def _shown(given: str) -> str:
    try:
        text = repr(ast.literal_eval(given))
    except (ValueError, SyntaxError):
        text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."
