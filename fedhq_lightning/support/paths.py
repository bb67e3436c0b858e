"""Paths as users write them: with `~`, `$NAME` and `${NAME}`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypeVar

from fedhq_lightning.errors import ConfigurationError

_T = TypeVar("_T")

_NAMED = re.compile(r"\$(?:(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[^}]*)\}?)")
_HOME_OF = re.compile(r"~[^/]*/")
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*")
UNRESOLVED = re.compile(r"\$\{[^}]*\}?")
"""What another configuration system would replace, and this one does not."""


def expand(given: str | os.PathLike[str], key: str = "path") -> str:
    """The path that is meant: variables of the environment and `~` put in, as a shell does, and nothing else changed.

    Args:
        given: As the user wrote it.
        key: What the path is for, for the message.

    Raises:
        ConfigurationError: A variable that is not set, a user who does not exist, or `${...}` of another kind.
    """
    text = os.fspath(given)

    def value(match: re.Match[str]) -> str:
        name = match["name"] or match["braced"]
        if name in os.environ:
            return os.environ[name]
        if _PLAIN_NAME.fullmatch(name):
            raise ConfigurationError(
                f"{key} {text!r}: ${name} is not set in the environment; set it, or write out what it stands for"
            )
        variable = name.rpartition(":")[2] or "NAME"
        raise ConfigurationError(
            f"{key} {text!r}: {match[0]} is not resolved here; a path takes ~ and variables of the environment, such "
            f"as ${variable}"
        )

    found = os.path.expanduser(_NAMED.sub(value, text))
    if _HOME_OF.match(found):
        raise ConfigurationError(
            f"{key} {text!r}: there is no user {found.partition('/')[0][1:]!r} here; give the path"
        )
    return found


def expand_path(given: str | os.PathLike[str], key: str = "path") -> Path:
    """As `expand`, as a path."""
    return Path(expand(given, key))


def expand_if_given(given: _T, key: str = "path") -> _T:
    """As `expand` where a text or a path was given, of the same type; anything else as it is."""
    if isinstance(given, str):
        return type(given)(expand(given, key))
    return type(given)(expand(given, key)) if isinstance(given, Path) else given
