"""One readable line from what jsonargparse says about a recipe."""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentError
from collections.abc import Iterable
from importlib import import_module

from fedhq_lightning.errors import ConfigurationError, nearest

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_OPTION = re.compile(r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (.+)")
_NO_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_NOT_SUBCLASS = re.compile(r"Import path (\S+) does not correspond to a subclass of (\S+)")
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?$")
_GIVEN = re.compile(r"Given value: (.*)$")


def explain(error: Exception, known_keys: Iterable[str]) -> str:
    """The key, what was given, what is allowed.

    Args:
        error: From parsing or instantiating a recipe.
        known_keys: Dotted keys of the parser, for the nearest name.
    """
    for each in _chain(error):
        if isinstance(each, ConfigurationError):
            return str(each)
    text = str(error)
    if not isinstance(error, ArgumentError):
        deepest = list(_chain(error))[-1]
        return _first_cause(str(deepest))
    keys, classes = _KEY.findall(text), _CLASS.findall(text)
    where = ".".join(keys)
    if match := _UNRECOGNIZED.search(text):
        given = match[1].split()[0].lstrip("-").partition("=")[0]
        return f"unknown key {given!r}{nearest(given, known_keys)}"
    if match := _OPTION.search(text):
        return _unknown_option(match[1] or where, match[2], classes, list(known_keys))
    if match := _NO_ATTRIBUTE.search(text):
        names = getattr(import_module(match[1]), "__all__", [])
        return f"{where}: {match[1]} has no class {match[2]!r}{nearest(match[2], names)}"
    if not classes and (match := _NOT_SUBCLASS.search(text)):
        return f"{where}: {match[1]} is not a {match[2]}"
    return _wrong_type(where, text)


def _unknown_option(where: str, option: str, classes: list[str], known_keys: list[str]) -> str:
    if not classes:
        key = f"{where}.{option}" if where else option
        head = option.partition(".")[0] if not where else key
        tops = sorted({known.partition(".")[0] for known in known_keys})
        return f"unknown key {head!r}{nearest(head, known_keys if where else tops)}"
    module_name, _, class_name = classes[-1].rpartition(".")
    allowed = list(inspect.signature(getattr(import_module(module_name), class_name)).parameters)
    return f"{where}: {class_name} has no {option!r}; it takes {', '.join(allowed)}{nearest(option, allowed)}"


def _wrong_type(where: str, text: str) -> str:
    expected: list[str] = []
    given = None
    for line in text.splitlines():
        if match := _EXPECTED.search(line.strip()):
            expected.append(_type_name(match[1]))
            given = match[2] if match[2] is not None else given
        if given is None and (match := _GIVEN.search(line.strip())):
            given = match[1]
    if not expected or given is None:
        return f"{where}: {_first_cause(text)}" if where else _first_cause(text)
    allowed = " or ".join(dict.fromkeys(expected))
    return f"{where} {given!r}: must be {allowed}"


def _type_name(text: str) -> str:
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"^typing\.Literal\[(.*)\]$", r"one of \1", text)
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
    return names.get(text, text)


def _first_cause(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    causes = [line.removeprefix("- ") for line in lines if line.startswith("- ") and "Expected a" not in line]
    return causes[0] if causes else " ".join(line for line in lines if not line.startswith("Given value"))


def _chain(error: BaseException) -> Iterable[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__
