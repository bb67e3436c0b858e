"""A CSV file as cells of text, each row with its line; what cannot be read is refused by file and line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.text import shortened

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class TextTable:
    """What a CSV file holds.

    Attributes:
        name: Of the file, for messages.
        header: Names of the columns, each once; empty for an empty file.
        rows: As many cells each as the header, without the spaces around them.
        lines: Where in the file each row ends, from 1.
    """

    name: str
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]


def parse_csv(name: str, content: bytes, encoding: str = "utf-8", delimiter: str = ",") -> TextTable:
    """The cells of a CSV file. Empty lines are passed over.

    Args:
        name: Of the file, for messages.
        content: Its bytes.
        encoding: Of its text, as Python names it.
        delimiter: Between cells, one character.

    Raises:
        ConfigurationError: Bytes that the encoding has not, a row that is longer or shorter than the header, a name
            that is there twice, something that is no CSV.
    """
    reader = csv.reader(io.StringIO(_decoded(name, content, encoding), newline=""), delimiter=delimiter, strict=True)
    header: tuple[str, ...] = ()
    rows, lines = list[list[str]](), list[int]()
    try:
        for cells in reader:
            if not cells:
                continue
            cells = [cell.strip() for cell in cells]
            if not header:
                header = tuple(cells)
                _check_header(name, header, delimiter)
            elif len(cells) != len(header):
                raise ConfigurationError(
                    f"{name}, line {reader.line_num}: {len(cells)} cells, where the header has {len(header)}; mend the "
                    f"line, or put a cell that holds {delimiter!r} into double quotes"
                )
            else:
                rows.append(cells)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ConfigurationError(f"{name}, line {reader.line_num}: no CSV ({error}); mend the line") from error
    return TextTable(name, header, rows, lines)


def _decoded(name: str, content: bytes, encoding: str) -> str:
    try:
        # Excel begins its UTF-8 with a mark that would become part of the first name.
        return content.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise ConfigurationError(
            f"encoding {encoding!r}: Python knows none of that name; give utf-8, latin-1, cp1252 or utf-16"
        ) from None
    except UnicodeDecodeError as error:
        likely = "utf-16" if content.startswith(_UTF_16) else "latin-1 or cp1252"
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start : error.start + 1].hex()
        raise ConfigurationError(
            f"{name}, line {line}: byte 0x{byte} is no {encoding}; set encoding to that of the file, perhaps {likely}"
        ) from None


def _check_header(name: str, header: tuple[str, ...], delimiter: str) -> None:
    if len(header) == 1:
        for other in ";\t|,":
            if other != delimiter and other in header[0]:
                raise ConfigurationError(
                    f"{name}, line 1: one column, {shortened(header[0], 60)!r}, found with delimiter {delimiter!r}; "
                    f"set delimiter to {other!r}"
                )
    twice = [column for column, count in Counter(header).items() if count > 1]
    if twice:
        raise ConfigurationError(
            f"{name}, line 1: column {twice[0]!r} is there {header.count(twice[0])} times; give each a name of its own"
        )
