"""Tables as the tensors of batches, once it is known how a row is read."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import TensorDataset

from fedhq_lightning.data.table_cells import Cells, ClientTable
from fedhq_lightning.data.table_form import CategoryColumn, TableForm
from fedhq_lightning.errors import ConfigurationError


def encode(table: ClientTable, form: TableForm) -> TensorDataset:
    """Features, (num_rows, num_columns) float32, and labels, (num_rows,) int64.

    Args:
        table: Rows.
        form: How they are read.

    Raises:
        ConfigurationError: A column is missing, or has texts where the form has numbers, or a label is none of the
            form's.
    """
    if table.columns is None:
        return TensorDataset(torch.empty(0, len(form.columns)), torch.empty(0, dtype=torch.int64))
    features = np.empty((len(table), len(form.columns)), dtype=np.float32)
    for position, column in enumerate(form.columns):
        if column.name not in table.columns:
            raise ConfigurationError(f"{table.name}, line 1: no column {column.name!r}, which the model takes; add it")
        cells = table.columns[column.name]
        if isinstance(column, CategoryColumn):
            features[:, position] = cells.numbered(_places(column.categories))
        elif cells.kind == "texts":
            _refuse_texts(table, column.name, cells)
        else:
            features[:, position] = cells.values
    labels = table.labels.numbered(_places(form.classes))
    if (unknown := np.flatnonzero(np.isnan(labels))).size:
        row = int(unknown[0])
        text = table.labels.texts[int(table.labels.values[row])]
        raise ConfigurationError(
            f"{table.name}, line {table.lines[row]}, column {form.label!r}: {text!r} is a class that no client has; "
            f"they have {', '.join(form.classes[:20])}"
        )
    return TensorDataset(torch.from_numpy(features), torch.from_numpy(labels.astype(np.int64)))


def _places(texts: tuple[str, ...]) -> dict[str, int]:
    return {text: place for place, text in enumerate(texts)}


def _refuse_texts(table: ClientTable, column: str, cells: Cells) -> None:
    line, text = cells.example or (0, "")
    raise ConfigurationError(
        f"{table.name}, line {line}, column {column!r}: {text!r} is no number, and the model takes numbers there; "
        "mend it, or list it in missing"
    )
