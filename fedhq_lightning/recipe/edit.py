"""Put a value into a recipe's text, and leave everything else in it as it is, comments too."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.yaml_text import parse_yaml

_KERNELS = ("trainer", "lanes", "layer_kernels")
_NOTE = "  # measured by fedhq profile on one host"
_NOT_SAFELY = "its YAML cannot be changed safely"


def with_layer_kernels(text: str, kernels: Mapping[str, Mapping[str, str]]) -> str:
    """The recipe with `trainer.lanes.layer_kernels` set; what was there is replaced.

    Args:
        text: A recipe, in any line ends.
        kernels: Mode to name pattern to kernel; empty takes out what was there.

    Raises:
        ConfigurationError: The text is written so that it cannot be changed safely, such as with `trainer` in braces.
    """
    content = parse_yaml(text)
    if _value_at(content, _KERNELS) in (None, {}) and not kernels:
        return text
    return with_value(text, _KERNELS, {mode: dict(chosen) for mode, chosen in kernels.items()} or None)


def with_value(text: str, place: tuple[str, ...], value: Any) -> str:
    """The recipe with one value set; what was there is replaced.

    Args:
        text: A recipe, in any line ends.
        place: Keys from its root to the value.
        value: Plain.

    Raises:
        ConfigurationError: The text is written so that it cannot be changed safely, such as with `trainer` in braces.
    """
    content = parse_yaml(text)
    wanted = copy.deepcopy(content)
    node = wanted
    for key in place:
        if not isinstance(node, dict):
            raise ConfigurationError(_NOT_SAFELY)
        parent, node = node, node.get(key) or {}
        parent[key] = node
    parent[place[-1]] = value
    edited = _edited(text, content, wanted, place)
    # Anchors, merge keys and odd layouts: whatever the edit did not foresee shows here.
    if edited is None or not _holds(edited, wanted):
        raise ConfigurationError(_NOT_SAFELY)
    return edited


def block(kernels: Mapping[str, Mapping[str, str]]) -> str:
    """The kernels as text to paste into a recipe."""
    return _dumped("trainer", {"lanes": {"layer_kernels": kernels}}, 0)


def _edited(text: str, content: Any, wanted: Any, place: tuple[str, ...]) -> str | None:
    node, column = yaml.compose(text, Loader=yaml.SafeLoader), 0
    end_of_line = "\r\n" if "\r\n" in text else "\n"
    for depth, key in enumerate(place):
        if not isinstance(node, yaml.MappingNode) or node.flow_style:
            return None
        column = node.start_mark.column
        path = place[: depth + 1]
        entry = next(((k, v) for k, v in node.value if k.value == key), None)
        lines = _dumped(key, _value_at(wanted, path), column).replace("\n", end_of_line)
        if entry is None:
            at = _line_after(text, _last_leaf(node))
            return _joined(text[:at], lines, text[at:], end_of_line)
        child = entry[1]
        is_block = isinstance(child, yaml.MappingNode) and not child.flow_style
        if depth == len(place) - 1 or not is_block:
            if depth == 0 and _value_at(content, path):
                return None  # in braces: too much would be written anew
            start, after = entry[0].start_mark.index - column, _line_after(text, _last_leaf(child))
            if after <= start or text[start : start + column].strip():
                return None
            return _joined(text[:start], lines, text[after:], end_of_line)
        node = child
    return None


def _dumped(key: str, value: Any, column: int) -> str:
    text = str(yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=False, allow_unicode=True))
    text = text.replace(f"{_KERNELS[-1]}:\n", f"{_KERNELS[-1]}:{_NOTE}\n", 1)
    return "".join(f"{' ' * column}{line}" for line in text.splitlines(keepends=True))


def _joined(before: str, lines: str, after: str, end_of_line: str) -> str:
    if before and not before.endswith("\n"):
        before += end_of_line
    return before + lines + after


def _last_leaf(node: yaml.Node) -> yaml.Node:
    """What ends a node in the text: a block's own end mark stands behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_leaf(last[1] if isinstance(last, tuple) else last)
    return node


def _line_after(text: str, leaf: yaml.Node) -> int:
    """Where the line after a leaf begins."""
    mark = leaf.end_mark
    if mark.column == 0 and mark.index > leaf.start_mark.index:
        return int(mark.index)  # a block scalar ends where the next line begins
    end = text.find("\n", mark.index)
    return len(text) if end < 0 else end + 1


def _value_at(content: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _holds(text: str, wanted: Any) -> bool:
    try:
        return bool(parse_yaml(text) == wanted)
    except ConfigurationError:
        return False
