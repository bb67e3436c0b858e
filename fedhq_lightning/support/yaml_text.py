"""YAML that anybody may have written: read as plain values within limits, or refused in one sentence.

Plain values are text, numbers, true and false, null, lists and mappings. Dates stay text. What is counted is what the
text stands for: an alias costs as much as what it repeats, so that a short text cannot become gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.untrusted_files import MOST_TEXT_BYTES, read_text

MOST_VALUES = 100_000
"""That a text stands for; they take half a second to make."""
DEEPEST = 50
"""Lists and mappings inside each other. Recipes have ten; beyond 10,000 libyaml itself ends the process."""
_LONGEST_NUMBER = 100
"""Characters. For numbers on base 60, `1:1:1:...`, Python takes a time that grows with their square."""

_HARMLESS = 2 * DEEPEST
"""Characters in which nothing can nest too deeply, nor much be repeated."""
_NUMBER = re.compile(r"[-+]?(?:0[xb][0-9a-fA-F_]+|[0-9][0-9_]*+(?::[0-9]+)*+(?:\.[0-9_]*)?)")
_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_PLAIN_TAGS = (None, "!", *_NUMBERS, *(f"{_TAG}{name}" for name in ("null", "bool", "str", "seq", "map")))
_LEFT_AS_TEXT = (f"{_TAG}timestamp", f"{_TAG}value")

_LibraryLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_LibraryLoader):  # type: ignore[misc]  # yaml has no types
    """The library's safe loader, for plain values."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _LEFT_AS_TEXT]
    for first, resolvers in _LibraryLoader.yaml_implicit_resolvers.items()
}


def _number(loader: Any, node: Any) -> int | float:
    make = loader.construct_yaml_int if node.tag == _NUMBERS[0] else loader.construct_yaml_float
    try:
        number: int | float = make(node)
    except (ValueError, LookupError, OverflowError):
        problem = f"{node.value!r} is no number"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
    return number


for _tag in _NUMBERS:
    _Loader.add_constructor(_tag, _number)


def parse_yaml(text: str) -> Any:
    """The plain values that a YAML text stands for.

    Raises:
        ConfigurationError: `not readable as YAML, line N: problem`; a tag of something that is no plain value; or it
            is larger or deeper than the limits above.
    """
    if len(text) > MOST_TEXT_BYTES:
        raise ConfigurationError(f"not readable as YAML: {len(text):,} characters; {MOST_TEXT_BYTES:,} is the most")
    try:
        _check_limits(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigurationError(f"not readable as YAML{line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise ConfigurationError(f"not readable as YAML: {' '.join(str(error).split())}") from error
    except KeyError as error:  # of `!!bool`
        raise ConfigurationError(f"not readable as YAML: {error} is neither true nor false") from error


def read_yaml(path: Path) -> Any:
    """The plain values that a YAML file stands for.

    Raises:
        ConfigurationError: `PATH: reason`: it cannot be read, is no text, or as `parse_yaml`.
    """
    text = read_text(path, MOST_TEXT_BYTES)
    try:
        return parse_yaml(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def check_texts(content: Any, depth: int = 0) -> None:
    """Refuse texts within plain values that would be beyond the limits if somebody took them for YAML once more.

    jsonargparse does, for every text where no text belongs.

    Args:
        content: The plain values.
        depth: In how many texts they were found, each in the one before.

    Raises:
        ConfigurationError: One would.
    """
    if depth > DEEPEST:  # `key::::::` is one as often as it has colons
        raise ConfigurationError(
            f"not readable as YAML: a text that is YAML within YAML, over and over; {DEEPEST} times is the most"
        )
    if isinstance(content, Mapping):
        content = [*content, *content.values()]
    if isinstance(content, list):
        for each in content:
            check_texts(each, depth)
    elif isinstance(content, str) and len(content) > _HARMLESS:
        try:
            _check_limits(content)
            meant = yaml.load(content, Loader=_Loader)
        except (yaml.YAMLError, UnicodeEncodeError, KeyError):
            return  # no YAML, so nobody can
        if meant != content:
            check_texts(meant, depth + 1)


def _check_limits(text: str) -> None:
    """Refuse a text that is too deep, or stands for too much, before anything is made of it.

    Raises:
        yaml.YAMLError: It is no YAML.
        ConfigurationError: It is beyond a limit, or has a tag of something that is no plain value.
    """
    counts, open_counts = dict[str, int](), [0]
    anchors = list[str | None]()
    for event in _events(text):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise ConfigurationError(f"not readable as YAML, line {line}: *{event.anchor} holds itself")
            open_counts[-1] += counts.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            if event.tag not in _PLAIN_TAGS:
                tag = event.tag.replace(_TAG, "!!")
                raise ConfigurationError(
                    f"not readable as YAML, line {line}: tag {tag!r} is none of text, numbers, true, false, null, "
                    "lists and mappings"
                )
            open_counts[-1] += 1
            if isinstance(event, yaml.CollectionStartEvent):
                anchors.append(event.anchor)
                open_counts.append(0)
            else:
                if len(event.value) > _LONGEST_NUMBER and not event.style and _NUMBER.fullmatch(event.value):
                    raise ConfigurationError(f"not readable as YAML, line {line}: a number of too many digits")
                if event.anchor:
                    counts[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            count, anchor = open_counts.pop(), anchors.pop()
            open_counts[-1] += count
            if anchor:
                counts[anchor] = count + 1
        if len(open_counts) > DEEPEST:
            raise ConfigurationError(_too_deep(line))
        if open_counts[-1] > MOST_VALUES:
            raise ConfigurationError(f"not readable as YAML, line {line}: stands for more than {MOST_VALUES:,} values")


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_LibraryLoader)
    except yaml.MarkedYAMLError as error:  # libyaml from 0.2.6 on looks ahead, and has a limit of its own
        if "nesting depth" not in str(error.problem) or error.problem_mark is None:
            raise
        raise ConfigurationError(_too_deep(error.problem_mark.line + 1)) from error


def _too_deep(line: int) -> str:
    return f"not readable as YAML, line {line}: nested more than {DEEPEST} deep"
