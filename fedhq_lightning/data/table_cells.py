"""One client's rows, column by column: as numbers, or as texts that are counted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedhq_lightning.data.csv_text import TextTable
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.text import shortened

CellKind = Literal["numbers", "texts"]
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Cells:
    """A column of one client.

    Attributes:
        kind: None where every cell is missing.
        values: (num_rows,) float32 numbers, or where in `texts` each cell's is; NaN where it is missing.
        texts: The different texts, sorted; empty for numbers.
        example: Line and text of the first cell that is not missing.
    """

    kind: CellKind | None
    values: NDArray[np.float32]
    texts: tuple[str, ...]
    example: tuple[int, str] | None

    def at(self, rows: NDArray[np.int64]) -> Cells:
        """The cells of some rows; `texts` and `example` stay those of all."""
        return Cells(self.kind, self.values[rows], self.texts, self.example)

    def numbered(self, texts: Mapping[str, int]) -> NDArray[np.float32]:
        """(num_rows,) float32: the number that `texts` has for each cell, NaN where it is missing or has none.

        Args:
            texts: From a text to its number.
        """
        numbers = np.array([*(texts.get(text, math.nan) for text in self.texts), math.nan], dtype=np.float32)
        positions = np.where(np.isnan(self.values), len(self.texts), self.values).astype(np.int64)
        return numbers[positions]


@dataclass(frozen=True)
class ClientTable:
    """Rows of one client.

    Attributes:
        name: Of the file that they are from, for messages.
        columns: By name, in the order of the file; None where the file is empty and has no columns.
        labels: Of every row; none is missing.
        lines: (num_rows,) where in the file each row is.
    """

    name: str
    columns: Mapping[str, Cells] | None
    labels: Cells
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lines)


def cells_of(
    table: TextTable, column: str, rows: Sequence[int], missing: Collection[str], as_texts: bool = False
) -> Cells:
    """A column of some rows, all numbers or all texts.

    Args:
        table: What the file holds.
        column: One of its header.
        rows: Which rows.
        missing: Texts, in small letters, of cells that hold nothing.
        as_texts: Take numbers for texts too; whole ones are written without a point, so that 1 and 1.0 are the same.

    Raises:
        ConfigurationError: Numbers and texts in one column, or a number that is not finite in float32.
    """
    position = table.header.index(column)
    texts = [table.rows[row][position] for row in rows]
    held = [index for index, text in enumerate(texts) if text.lower() not in missing]
    values = np.full(len(texts), math.nan, dtype=np.float32)
    if not held:
        return Cells(None, values, (), None)
    numbers = [_number(texts[index]) for index in held]
    example = table.lines[rows[held[0]]], texts[held[0]]
    if as_texts or all(number is None for number in numbers):
        plain = [plain_text(texts[index]) for index in held]
        different = tuple(sorted(set(plain)))
        places = {text: place for place, text in enumerate(different)}
        values[held] = [places[text] for text in plain]
        return Cells("texts", values, different, example)
    for index, number in zip(held, numbers, strict=True):
        line = table.lines[rows[index]]
        if number is None:
            _refuse_mixture(table.name, line, column, texts[index])
        elif not abs(number) <= _LARGEST:
            raise ConfigurationError(
                f"{table.name}, line {line}, column {column!r}: {shortened(texts[index], 40)!r} is no finite number in "
                "float32; mend it, or list it in missing"
            )
    values[held] = numbers
    return Cells("numbers", values, (), example)


def no_cells() -> Cells:
    """A column without rows."""
    return Cells(None, np.empty(0, np.float32), (), None)


def _refuse_mixture(name: str, line: int, column: str, text: str) -> None:
    comma = text.count(",") == 1 and _number(text.replace(",", ".")) is not None
    raise ConfigurationError(
        f"{name}, line {line}, column {column!r}: {shortened(text, 40)!r} is no number, other cells of the column are; "
        + ("write it with a point, " if comma else "mend it, list it in missing where it stands for nothing, ")
        + f"or list {column!r} in categorical"
    )


def _number(text: str) -> float | None:
    if "_" in text:  # Python's own way of writing numbers, nobody else's
        return None
    try:
        return float(text)
    except ValueError:
        return None


def plain_text(text: str) -> str:
    """A category as it is known: a whole number without a point, so that 1, 1.0 and 01 are the same."""
    number = _number(text)
    return str(int(number)) if number is not None and number.is_integer() else text
