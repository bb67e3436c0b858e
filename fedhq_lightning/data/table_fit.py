"""The federated fit of a table: two short exchanges of counts and sums, from which the server makes the columns' form.

What `Counted` and the squares of `squares_about` hold is all that leaves a client. A sum is correctly rounded
(`math.fsum`), so neither the order of clients nor that of a client's rows changes a bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fedhq_lightning.data.table_cells import CellKind, Cells, ClientTable
from fedhq_lightning.data.table_form import CategoryColumn, NumberColumn, TableForm
from fedhq_lightning.errors import ConfigurationError

EACH_CLIENT_SENDS = (
    "of every column of numbers: how many training rows have a value, and the sum of these",
    "told all clients' means, of every column of numbers: the sum of squared differences from the mean",
    "of every column of categories: the categories, and how many training rows have each",
    "the classes, and how many rows have each",
)
EACH_CLIENT_IS_TOLD = (
    "the mean and the standard deviation of every column of numbers, over all clients",
    "the categories of every column of categories, and the classes, of all clients",
)


def fit_tables(clients: Sequence[tuple[ClientTable, Tensor]], label: str) -> TableForm:
    """Both exchanges, and what the server makes of them.

    Args:
        clients: Each one's table, and which of its rows it trains on, int64.
        label: Name of the label's column.

    Raises:
        ConfigurationError: Columns differ between files, hold nothing, or there are fewer than two classes.
    """
    held = [(table, table.columns, rows.numpy()) for table, rows in clients if table.columns is not None]
    kinds = kinds_of([table for table, _, _ in held])
    trained = [{name: cells.at(rows) for name, cells in columns.items()} for _, columns, rows in held]
    messages = [counted(columns, table.labels) for columns, (table, _, _) in zip(trained, held, strict=True)]
    means = means_of(messages)
    squares = [squares_about(columns, means) for columns in trained]
    form = form_of(kinds, label, messages, squares)
    if len(form.classes) < 2:
        raise ConfigurationError(
            f"label {label!r}: every row is {form.classes[0]!r}; there must be two classes to tell apart"
        )
    return form


@dataclass(frozen=True)
class Counted:
    """What a client sends first.

    Attributes:
        numbers: Of every column of numbers: training rows with a value, and their sum.
        categories: Of every column of categories: training rows with each.
        classes: Rows of each class, held-out ones too.
    """

    numbers: Mapping[str, tuple[int, float]]
    categories: Mapping[str, Mapping[str, int]]
    classes: Mapping[str, int]


def counted(columns: Mapping[str, Cells], labels: Cells) -> Counted:
    """The first message of a client.

    Args:
        columns: Its training rows.
        labels: Of all its rows.
    """
    return Counted(
        {name: (len(held), math.fsum(held)) for name, held in _numbers(columns)},
        {name: _texts_counted(cells) for name, cells in columns.items() if cells.kind == "texts"},
        _texts_counted(labels),
    )


def squares_about(columns: Mapping[str, Cells], means: Mapping[str, float]) -> dict[str, float]:
    """The second message of a client: of every column of numbers the sum of squared differences from the common mean.

    Sums of squares about zero would do in exact arithmetic; in floating point they lose a small spread about a large
    mean.

    Args:
        columns: Its training rows.
        means: Of all clients.
    """
    squares = {}
    for name, held in _numbers(columns):
        differences = np.asarray(held) - means[name]
        squares[name] = math.fsum((differences * differences).tolist())
    return squares


def means_of(messages: Sequence[Counted]) -> dict[str, float]:
    """Each number column's mean over all clients, from their first messages; 0 where no training row has a value."""
    means = {}
    for name in sorted({name for message in messages for name in message.numbers}):
        told = [message.numbers[name] for message in messages if name in message.numbers]
        count = sum(count for count, _ in told)
        means[name] = math.fsum(total for _, total in told) / max(count, 1)
    return means


def form_of(
    kinds: Mapping[str, CellKind], label: str, messages: Sequence[Counted], squares: Sequence[Mapping[str, float]]
) -> TableForm:
    """What the server makes of the clients' messages.

    Args:
        kinds: Of the columns, in the order of a row.
        label: Name of the label's column.
        messages: Each client's first.
        squares: Each client's second.
    """
    means = means_of(messages)
    columns: list[NumberColumn | CategoryColumn] = []
    for name, kind in kinds.items():
        if kind == "texts":
            columns.append(CategoryColumn(name, _all_texts(each.categories.get(name, {}) for each in messages)))
            continue
        count = sum(each.numbers[name][0] for each in messages if name in each.numbers)
        variance = math.fsum(each[name] for each in squares if name in each) / max(count, 1)
        scale = math.sqrt(variance)
        columns.append(NumberColumn(name, means.get(name, 0.0), scale if np.float32(scale) > 0 else 1.0))
    return TableForm(tuple(columns), label, in_order(_all_texts(each.classes for each in messages)))


def in_order(texts: Sequence[str]) -> tuple[str, ...]:
    """Classes as one would list them: whole numbers by their size, others as texts."""
    try:
        return tuple(sorted(texts, key=int))
    except ValueError:
        return tuple(sorted(texts))


def kinds_of(tables: Sequence[ClientTable]) -> dict[str, CellKind]:
    """What each column holds, in the order of the first table; the same in all tables.

    Args:
        tables: Of all clients, at least one with columns.

    Raises:
        ConfigurationError: A file has other columns than the first, or texts where others have numbers, or a column
            holds nothing in any file.
    """
    held = [table for table in tables if table.columns is not None]
    first = held[0]
    kinds: dict[str, CellKind] = {}
    seen: dict[str, ClientTable] = {}
    for table in held:
        _check_same_columns(first, table)
        for name, cells in (table.columns or {}).items():
            if cells.kind is None:
                continue
            if kinds.setdefault(name, cells.kind) != cells.kind:
                _refuse_mixture(name, seen[name], table)
            seen.setdefault(name, table)
    names = list(first.columns or {})
    if empty := [name for name in names if name not in kinds]:
        raise ConfigurationError(
            f"column {empty[0]!r}: holds nothing in any file; list it in drop, or look at what missing lists"
        )
    return {name: kinds[name] for name in names}


def _check_same_columns(first: ClientTable, other: ClientTable) -> None:
    ours, theirs = first.columns or {}, other.columns or {}
    for has, lacks, names in (
        (first, other, [name for name in ours if name not in theirs]),
        (other, first, [name for name in theirs if name not in ours]),
    ):
        if names:
            raise ConfigurationError(
                f"{lacks.name}, line 1: no column {names[0]!r}, which {has.name} has; every file needs the same "
                "columns: add it, or list it in drop, which leaves it out everywhere"
            )


def _refuse_mixture(name: str, one: ClientTable, other: ClientTable) -> None:
    texts, numbers = (one, other) if _cells(one, name).kind == "texts" else (other, one)
    line, text = _cells(texts, name).example or (0, "")
    raise ConfigurationError(
        f"{texts.name}, line {line}, column {name!r}: {text!r} is no number, and {numbers.name} has numbers there; "
        f"mend it, list it in missing where it stands for nothing, or list {name!r} in categorical"
    )


def _cells(table: ClientTable, name: str) -> Cells:
    return (table.columns or {})[name]


def _numbers(columns: Mapping[str, Cells]) -> Iterator[tuple[str, list[float]]]:
    for name, cells in columns.items():
        if cells.kind == "numbers":
            yield name, cells.values[~np.isnan(cells.values)].astype(np.float64).tolist()


def _texts_counted(cells: Cells) -> dict[str, int]:
    held = cells.values[~np.isnan(cells.values)].astype(np.int64)
    counts = np.bincount(held, minlength=len(cells.texts)).tolist()
    return {text: count for text, count in zip(cells.texts, counts, strict=True) if count}


def _all_texts(counts: Any) -> tuple[str, ...]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return tuple(sorted(total))
