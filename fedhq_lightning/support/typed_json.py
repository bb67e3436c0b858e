"""JSON that anybody may have written, as values of a declared type, or refused in one sentence."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.untrusted_files import read_bytes

_Value = TypeVar("_Value")


def parse_json(text: bytes | str, kind: type[_Value]) -> _Value:
    """What JSON says.

    Args:
        text: UTF-8.
        kind: A dataclass, a TypedDict (whose other keys are kept if it says so), `dict[str, float]` and the like.
            Numbers may be written as text, as strict JSON has to for `nan` and `inf`; keys that a dataclass does not
            know are left out.

    Raises:
        ConfigurationError: It is no JSON, nests more than 200 deep, or is of another type: where, and why.
    """
    found: _Value = _or_a_sentence(_adapter(kind).validate_json, text)
    return found


def typed(values: Any, kind: type[_Value]) -> _Value:
    """Plain values as `parse_json` gives them.

    Raises:
        ConfigurationError: They are of another type: where, and why.
    """
    found: _Value = _or_a_sentence(_adapter(kind).validate_python, values)
    return found


def read_json(path: Path, kind: type[_Value], most_bytes: int) -> _Value:
    """What a file of JSON says.

    Raises:
        ConfigurationError: `PATH: reason`, as `read_bytes`, or `PATH is damaged: reason`, as `parse_json`.
    """
    content = read_bytes(path, most_bytes)
    try:
        return parse_json(content, kind)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from error


def _made(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


_adapter: Callable[[Any], Any] = cache(_made)


def _or_a_sentence(read: Callable[[Any], Any], given: Any) -> Any:
    from pydantic import ValidationError

    try:
        return read(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        shown = "" if first["type"] in ("json_invalid", "missing") else f", not {reprlib.repr(first['input'])}"
        what = f"{first['msg']}{shown}"
        raise ConfigurationError(f"{where}: {what}" if where else what) from error
