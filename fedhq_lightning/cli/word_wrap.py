"""Help and lists that break between words, however wide the terminal is; a terminal breaks anywhere."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

_BESIDE = re.compile(r"(\s+\S.*?)\s{2,}(\S.*)")
"""A line of a list: an indented word or command, and what is said of it."""
_NARROWEST = 28
"""Characters that a text beside others needs."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Takes indented lines for a list (a command, two spaces, what it does), and joins and fills the others."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _words(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(wrapped(text, width))


def terminal_width() -> int | None:
    """Characters of a line where standard output is a terminal; None elsewhere, where a line may have any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, width: int) -> Iterator[str]:
    """The lines of a text, none longer than `width` while its words are not.

    Args:
        text: Paragraphs apart by blank lines, and lists in indented lines.
        width: Characters.
    """
    for kind, lines in groupby(text.splitlines(), key=_kind):
        if kind == "blank":
            yield from lines
        elif kind == "prose":
            yield from _words(" ".join(lines), width)
        else:
            yield from columns([_beside(line) for line in lines], width)


def _kind(line: str) -> str:
    return "blank" if not line.strip() else "list" if line.startswith(" ") else "prose"


def _beside(line: str) -> tuple[str, str]:
    match = _BESIDE.fullmatch(line)
    return (match[1], match[2]) if match else (line, "")


def columns(rows: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    """Lines with what is said of each word beside it, or below it where there is no room beside.

    Args:
        rows: A word or a command, with its indentation, and what is said of it.
        width: Characters of a line; None for any.
    """
    begin = max(len(left) for left, _ in rows) + 2
    if width is None or all(begin + len(right) <= width for _, right in rows):
        return [f"{left:<{begin}}{right}".rstrip() for left, right in rows]
    lines = list[str]()
    for left, right in rows:
        indent = " " * (len(left) - len(left.lstrip()))
        if width - begin >= _NARROWEST:
            beside = _words(right, width - begin) or [""]
            lines += [f"{word:<{begin}}{part}".rstrip() for word, part in zip(_and_blanks(left), beside, strict=False)]
        else:
            lines += _command(left, indent, width)
            lines += _words(right, width, f"{indent}    ")
    return lines


def _and_blanks(word: str) -> Iterator[str]:
    yield word
    while True:
        yield ""


def _command(text: str, indent: str, width: int) -> list[str]:
    """A command over several lines, as a shell takes it."""
    if len(text) <= width:
        return [text]
    first, *others = _words(text.strip(), width - 2 - len(indent) - 4)
    parts = [f"{indent}{first}", *(f"{indent}    {each}" for each in others)]
    return [*(f"{part} \\" for part in parts[:-1]), parts[-1]]


def _words(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of whole words; `all-ptq` is one."""
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
