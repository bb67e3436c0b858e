"""How the rows of a table are read: its columns in their order, what is known of each, and the classes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedhq_lightning.data.table_cells import plain_text
from fedhq_lightning.support.typed_json import read_json

MOST_BYTES = 2**26
"""Of an `inputs.json`: ten thousand columns with a hundred categories of sixty letters."""


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers.

    Attributes:
        name: In the header.
        mean: Of all clients' training rows that have a value.
        scale: Their standard deviation; 1 where all are the same.
    """

    name: str
    mean: float
    scale: float


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories.

    Attributes:
        name: In the header.
        categories: Of all clients' training rows, sorted; a row of a batch holds the place of its own in this list.
    """

    name: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class TableForm:
    """What an input row of a table holds, and what the outputs stand for.

    Attributes:
        columns: In the order of a row.
        label: Name of the label's column.
        classes: Sorted; a label is the place in this list.
    """

    columns: tuple[NumberColumn | CategoryColumn, ...]
    label: str
    classes: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def read(cls, file: str | PathLike[str]) -> TableForm:
        """From an `inputs.json`, of a run or of its `model/`.

        Args:
            file: Its path.

        Raises:
            ConfigurationError: No such file, or one that tells no columns and classes.
        """
        return read_json(Path(file), cls, MOST_BYTES)

    def encode(self, rows: Iterable[Mapping[str, Any]]) -> Tensor:
        """Rows as the deployed model takes them: (num_rows, num_columns) float32, in raw units.

        What is None, an empty text or no category of the column becomes NaN, which the model takes for missing.

        Args:
            rows: From a column's name to its value, number or text; other names are passed over.

        Raises:
            KeyError: A row lacks a column.
            ValueError: A text in a column of numbers is none.
        """
        return torch.tensor(
            [[_encoded(column, row[column.name]) for column in self.columns] for row in rows], dtype=torch.float32
        ).reshape(-1, len(self.columns))


def _encoded(column: NumberColumn | CategoryColumn, value: Any) -> float:
    if value is None or value == "":
        return math.nan
    if isinstance(column, NumberColumn):
        return float(value)
    text = plain_text(str(value))
    return float(column.categories.index(text)) if text in column.categories else math.nan
