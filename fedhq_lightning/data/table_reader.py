"""From the text of CSV files to tables of clients: what stands for what, as the user says it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedhq_lightning.data.csv_text import TextTable, parse_csv
from fedhq_lightning.data.table_cells import ClientTable, cells_of, no_cells
from fedhq_lightning.data.table_form import CategoryColumn, TableForm
from fedhq_lightning.errors import ConfigurationError, nearest


@dataclass(frozen=True)
class TableReader:
    """Reads files that are written in one manner.

    Attributes:
        label: Column with the class.
        client: Column that names a row's client, or None.
        drop: Columns to leave out.
        categorical: Columns whose numbers are categories.
        missing: What stands for a missing value, in small letters.
        max_categories: Different texts that a column may have.
        encoding: Of the files' text.
        delimiter: Between cells.
    """

    label: str
    client: str | None
    drop: tuple[str, ...]
    categorical: tuple[str, ...]
    missing: frozenset[str]
    max_categories: int
    encoding: str
    delimiter: str

    def clients(self, name: str, content: bytes) -> Iterator[tuple[str, ClientTable]]:
        """The clients of one file: one with the name of the file, or those that its column names.

        Args:
            name: Of the file.
            content: Its bytes.

        Raises:
            ConfigurationError: What of it cannot be used.
        """
        text = self._parsed(name, content)
        if self.client is None:
            yield Path(name).stem, self._typed(text, range(len(text.rows)))
            return
        rows_of: dict[str, list[int]] = {}
        for row, client_id in enumerate(self._whole_column(text, self.client) if text.header else []):
            rows_of.setdefault(client_id, []).append(row)
        for client_id, rows in rows_of.items():
            yield client_id, self._typed(text, rows)

    def whole(self, name: str, content: bytes) -> ClientTable:
        """All rows of one file, whosever they are.

        Args:
            name: Of the file.
            content: Its bytes.

        Raises:
            ConfigurationError: What of it cannot be used.
        """
        text = self._parsed(name, content)
        return self._typed(text, range(len(text.rows)))

    def for_form(self, form: TableForm) -> TableReader:
        """A reader of other rows, in the same manner, whose columns are known: any text may stand in one of categories.

        Args:
            form: Of the columns.
        """
        names = tuple(column.name for column in form.columns if isinstance(column, CategoryColumn))
        return replace(self, categorical=names)

    def check_texts(self, where: str, column: str, texts: Sequence[str]) -> None:
        """Refuse a column that names its rows instead of sorting them.

        Args:
            where: Whose texts, for the message.
            column: Its name.
            texts: Its different texts.

        Raises:
            ConfigurationError: More than `max_categories`.
        """
        if len(texts) <= self.max_categories:
            return
        mend = "if it is measured, make a few classes of it" if column == self.label else f"list {column!r} in drop"
        raise ConfigurationError(
            f"{where}, column {column!r}: {len(texts)} different texts, such as {texts[0][:40]!r}; {mend}, or raise "
            f"max_categories ({self.max_categories})"
        )

    def check_form(self, form: TableForm) -> None:
        """Refuse what the clients' files hold together.

        Args:
            form: What was fitted on them.

        Raises:
            ConfigurationError: More categories or classes than `max_categories`, or no column that is listed in
                `categorical`.
        """
        for column in form.columns:
            if isinstance(column, CategoryColumn):
                self.check_texts("all clients", column.name, column.categories)
        self.check_texts("all clients", form.label, form.classes)
        names = [column.name for column in form.columns]
        for name in self.categorical:
            if name not in names:
                raise ConfigurationError(
                    f"categorical {name!r}: no such column; there are {_listed(names)}{nearest(name, names)}"
                )

    def _parsed(self, name: str, content: bytes) -> TextTable:
        return parse_csv(name, content, self.encoding, self.delimiter)

    def _typed(self, text: TextTable, rows: Sequence[int]) -> ClientTable:
        lines = np.array([text.lines[row] for row in rows], dtype=np.int64)
        if not text.header:
            return ClientTable(text.name, None, no_cells(), lines)
        self._whole_column(text, self.label, rows)
        labels = cells_of(text, self.label, rows, self.missing, as_texts=True)
        self.check_texts(text.name, self.label, labels.texts)
        columns = {}
        for column in text.header:
            if column in (self.label, self.client, *self.drop):
                continue
            columns[column] = cells_of(text, column, rows, self.missing, as_texts=column in self.categorical)
            self.check_texts(text.name, column, columns[column].texts)  # before any of them leaves the client
        if not columns:
            raise ConfigurationError(
                f"{text.name}: no column but those of label, client and drop: nothing to learn from"
            )
        return ClientTable(text.name, columns, labels, lines)

    def _whole_column(self, text: TextTable, column: str, rows: Sequence[int] | None = None) -> list[str]:
        """The cells of a column in which none may be missing."""
        if column not in text.header:
            role = "label" if column == self.label else "client"
            raise ConfigurationError(
                f"{role} {column!r}: {text.name} has no such column; it has {_listed(text.header)}"
                f"{nearest(column, text.header)}"
            )
        position = text.header.index(column)
        cells = []
        for row in range(len(text.rows)) if rows is None else rows:
            cells.append(text.rows[row][position])
            if cells[-1].lower() in self.missing:
                said = f" ({cells[-1]!r} is listed in missing)" if cells[-1] else ""
                raise ConfigurationError(
                    f"{text.name}, line {text.lines[row]}, column {column!r}: no value{said}; give one, or leave the "
                    "line out"
                )
        return cells


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
