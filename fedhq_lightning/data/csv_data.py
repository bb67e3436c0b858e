"""Tables in CSV files: one file a client, or one file with a column that names the client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning.data import table_fit
from fedhq_lightning.data.client_holdout import check_holdout, held_back
from fedhq_lightning.data.federated import FederatedDataModule
from fedhq_lightning.data.images import EVAL_BATCH_SIZE, TEST_EVERY, stratified_split
from fedhq_lightning.data.table_cells import ClientTable
from fedhq_lightning.data.table_encoding import encode
from fedhq_lightning.data.table_form import TableForm
from fedhq_lightning.data.table_reader import TableReader
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.support.untrusted_files import read_bytes
from fedhq_lightning.types import ClientId

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
MOST_BYTES = 2**32
"""Of one file."""


class HeldOutRows(TensorDataset):
    """Rows of the server, with the names of the classes, which stand in its tables.

    Args:
        features: (num_rows, num_columns) float32.
        labels: (num_rows,) int64.
        classes: Name of each class.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        super().__init__(features, labels)
        self.classes = list(classes)


class CSVDataModule(FederatedDataModule):
    """Clients' tables in CSV files, for classification.

    A batch is features, (batch, num_columns) float32, and labels, (batch,) int64. Features are raw: numbers in their
    own units, a category as its place in the sorted list of all, NaN where a value is missing or the category is one
    that no client trains on. `TabularMLP` standardizes them within its `forward`, as `TabularInput` does in a module of
    your own: so the deployed model takes raw rows. Means, scales, categories and classes are found by a federated fit
    in which clients send counts and sums (`table_fit.EACH_CLIENT_SENDS`) of their training rows alone. Neither the
    order of files nor, but for the split, that of rows changes a bit.

    Every file needs the same columns, in any order, and a header. A column whose cells are all numbers is one of
    numbers, a column whose cells are all texts one of categories. A client without rows is left out of the run.

    Args:
        path: A folder with a `NAME.csv` for each client, whose id is NAME; or one file, with `client`.
        label: Column with the class, text or whole number. No cell may be missing.
        client: Column that names a row's client; for one file only.
        held_out_file: A CSV file with the server's rows; None: of the rows of each client, sorted by class, every
            `hold_out_every`th is held out. Of either, of each class, every second row is for testing, the others choose
            the best round.
        hold_out_every: At least 2; only without `held_out_file`.
        drop: Columns to leave out, such as patients' names or numbers.
        categorical: Columns whose numbers are categories.
        missing: What stands for a missing value, in capital or small letters.
        max_categories: That a column may have, and the label: more are taken for names or measured values.
        batch_size: Training rows in a batch.
        encoding: Of the files' text.
        delimiter: Between cells.
        inputs_file: `inputs.json` of an earlier run, whose columns, statistics and classes are taken in place of a fit:
            to evaluate its model on other files, or to go on from its weights.
        client_holdout: Share of each client's other rows that it never trains on, which the fit does not see either,
            and evaluates models on, such as 0.2. None for none.
        holdout_seed: Which ones; the same in every run unless it is set.

    Raises:
        ConfigurationError: A value that cannot work. On `setup`: whatever in the files cannot be used, by file, line
            and column.
    """

    def __init__(
        self,
        path: str | Path,
        label: str,
        client: str | None = None,
        held_out_file: str | Path | None = None,
        hold_out_every: int = 5,
        drop: Sequence[str] = (),
        categorical: Sequence[str] = (),
        missing: Sequence[str] = MISSING,
        max_categories: int = 100,
        batch_size: int = 32,
        encoding: str = "utf-8",
        delimiter: str = ",",
        inputs_file: str | Path | None = None,
        client_holdout: float | None = None,
        holdout_seed: int | None = None,
    ) -> None:
        super().__init__()
        check_holdout(client_holdout)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("hold_out_every", hold_out_every, 2),
            ("max_categories", max_categories, 2),
        ):
            if value < least:
                raise ConfigurationError(f"{name} {value}: must be {least} or more")
        if len(delimiter) != 1:
            raise ConfigurationError(f"delimiter {delimiter!r}: must be one character, such as ',' or ';'")
        self.path = expand_path(path, "path")
        self.label = label
        self.client = client
        self.held_out_file = None if held_out_file is None else expand_path(held_out_file, "held_out_file")
        self.inputs_file = None if inputs_file is None else expand_path(inputs_file, "inputs_file")
        self.hold_out_every = hold_out_every
        self.drop = tuple(drop)
        self.categorical = tuple(categorical)
        self.missing = tuple(missing)
        self.max_categories = max_categories
        self.batch_size = batch_size
        self.encoding = encoding
        self.delimiter = delimiter
        self.client_holdout = client_holdout
        self.holdout_seed = holdout_seed
        self._form: TableForm | None = None
        self._training: dict[ClientId, TensorDataset] = {}
        self._held_back: dict[ClientId, TensorDataset] = {}
        self._held_out: list[HeldOutRows] = []

    @property
    def form(self) -> TableForm:
        """What a row of features holds, and what labels stand for."""
        if self._form is None:
            self._read()
        assert self._form is not None
        return self._form

    @property
    def client_ids(self) -> Sequence[ClientId]:
        """Names of files, or what the `client` column names, sorted."""
        self.setup("fit")
        return list(self._training)

    def setup(self, stage: str) -> None:
        """Read the files and fit the columns, once."""
        if self._form is None:
            self._read()

    def num_examples(self, client_id: ClientId) -> int:
        """Training rows of one client."""
        return len(self._rows_of(client_id))

    def label_counts(self, client_id: ClientId) -> Tensor:
        """Training rows of each class, (num_classes,) int64."""
        return torch.bincount(self._rows_of(client_id).tensors[1], minlength=len(self.form.classes))

    def model_inputs(self) -> dict[str, Any]:
        """The columns, each with what the fit found, the classes, and what clients told for it."""
        fit = {
            "clients": len(self.client_ids),
            "each_client_sent": list(table_fit.EACH_CLIENT_SENDS),
            "each_client_was_told": list(table_fit.EACH_CLIENT_IS_TOLD),
        }
        return {**self.form.as_plain(), "fit": fit}

    def train_dataloader(self, client_id: ClientId) -> DataLoader[Any]:  # type: ignore[override]  # as in its base
        """Shuffled training batches of one client; the order comes from torch's global random numbers."""
        rows = self._rows_of(client_id)
        return DataLoader(rows, self.batch_size, shuffle=len(rows) > 0)  # torch shuffles no empty set

    def client_val_dataloader(self, client_id: ClientId) -> DataLoader[Any] | None:
        """Rows that the client holds back; None for none."""
        self._rows_of(client_id)
        rows = self._held_back[client_id]
        return _in_order(rows) if len(rows) else None

    def val_dataloader(self) -> DataLoader[Any]:
        """Held-out rows that choose the best round."""
        return self._held_out_loader(0)

    def test_dataloader(self) -> DataLoader[Any]:
        """Held-out rows that choose nothing."""
        return self._held_out_loader(1)

    def files(self) -> Iterable[tuple[str, bytes]]:
        """Name and content of each client's file, or of the one file; a subclass may make them.

        Raises:
            ConfigurationError: No such folder or file, or no CSV file in it.
        """
        given = f"path {str(self.path)!r}"
        if self.client is not None:
            if self.path.is_dir():
                raise ConfigurationError(f"{given}: a folder; with client, give the one file that has its column")
            return [(self.path.name, read_bytes(self.path, MOST_BYTES))]
        if not self.path.is_dir():
            what = "a file; name its column of clients in client, or" if self.path.exists() else "no such folder;"
            raise ConfigurationError(f"{given}: {what} give a folder with a CSV file for each client")
        files = [file for file in self.path.iterdir() if file.suffix.lower() == ".csv" and file.name[0] != "."]
        files = sorted(file for file in files if not self._is_held_out(file))
        if not files:
            raise ConfigurationError(f"{given}: no file NAME.csv in it; give the folder that holds the clients' files")
        return ((file.name, read_bytes(file, MOST_BYTES)) for file in files)

    def _is_held_out(self, file: Path) -> bool:
        return self.held_out_file is not None and self.held_out_file.exists() and file.samefile(self.held_out_file)

    def _rows_of(self, client_id: ClientId) -> TensorDataset:
        self.setup("fit")
        if client_id not in self._training:
            raise KeyError(f"client {client_id!r}: the clients are {', '.join(map(str, self._training))}")
        return self._training[client_id]

    def _held_out_loader(self, part: int) -> DataLoader[Any]:
        self.setup("validate")
        return _in_order(self._held_out[part])

    def _reader(self) -> TableReader:
        return TableReader(
            self.label,
            self.client,
            self.drop,
            self.categorical,
            frozenset(text.strip().lower() for text in self.missing),
            self.max_categories,
            self.encoding,
            self.delimiter,
        )

    def _read(self) -> None:
        form = None if self.inputs_file is None else TableForm.read(self.inputs_file)
        reader = self._reader() if form is None else self._reader().for_form(form)
        tables = self._tables(reader)
        aside = {client_id: self._put_aside(table) for client_id, table in tables.items()}
        others = {client_id: _others(aside[client_id], len(table)) for client_id, table in tables.items()}
        back = {client_id: self._holds_back(client_id, tables[client_id], rows) for client_id, rows in others.items()}
        kept = {client_id: rows[~back[client_id]] for client_id, rows in others.items()}
        if form is None:
            form = table_fit.fit_tables([(table, kept[client_id]) for client_id, table in tables.items()], self.label)
            reader.check_form(form)
        encoded = {client_id: encode(table, form) for client_id, table in tables.items()}
        held_out = [encoded[client_id][rows] for client_id, rows in aside.items()]
        if self.held_out_file is not None:
            content = read_bytes(self.held_out_file, MOST_BYTES)
            held_out = [encode(reader.for_form(form).whole(self.held_out_file.name, content), form)[:]]
        features, labels = (torch.cat(parts) for parts in zip(*held_out, strict=True))
        if not len(labels):
            raise ConfigurationError(
                f"hold_out_every {self.hold_out_every}: no client has as many rows, so there is nothing to choose the "
                "best round by; lower it, or name a file of other rows in held_out_file"
            )
        rows_of_both = stratified_split(labels, TEST_EVERY)
        self._held_out = [HeldOutRows(features[rows], labels[rows], form.classes) for rows in rows_of_both]
        self._training = {client_id: TensorDataset(*dataset[kept[client_id]]) for client_id, dataset in encoded.items()}
        self._held_back = {
            client_id: TensorDataset(*dataset[others[client_id][back[client_id]]])
            for client_id, dataset in encoded.items()
        }
        self._form = form

    def _tables(self, reader: TableReader) -> dict[ClientId, ClientTable]:
        """Of every client, by id in the order of ids."""
        tables: dict[ClientId, ClientTable] = {}
        for name, content in self.files():
            for client_id, table in reader.clients(name, content):
                if client_id in tables:
                    raise ConfigurationError(f"{name} and {tables[client_id].name}: both are client {client_id!r}")
                tables[client_id] = table
        if not any(map(len, tables.values())):
            raise ConfigurationError(f"path {str(self.path)!r}: no rows; give files with a header and rows")
        return dict(sorted(tables.items(), key=lambda each: str(each[0])))

    def _put_aside(self, table: ClientTable) -> Tensor:
        """Rows of a client that are held out, ascending int64."""
        if self.held_out_file is not None:
            return torch.empty(0, dtype=torch.int64)
        by_class = torch.from_numpy(table.labels.values).argsort(stable=True)
        return by_class[self.hold_out_every - 1 :: self.hold_out_every].sort().values

    def _holds_back(self, client_id: ClientId, table: ClientTable, rows: Tensor) -> Tensor:
        """Which of some rows of a client, (num_rows,) bool, it evaluates models on; of each class one stays."""
        is_back = held_back(rows.numpy(), self.client_holdout, self.holdout_seed, client_id)
        labels = table.labels.values[rows.numpy()]
        for label in set(labels[is_back].tolist()) - set(labels[~is_back].tolist()):  # the fit must know every class
            is_back[np.flatnonzero(labels == label)[0]] = False
        return torch.from_numpy(is_back)


def _others(rows: Tensor, count: int) -> Tensor:
    """Of so many rows those that are not among some."""
    is_left = torch.ones(count, dtype=torch.bool)
    is_left[rows] = False
    return is_left.nonzero().flatten()


def _in_order(rows: TensorDataset) -> DataLoader[Any]:
    # A loader without its own generator draws from torch's global random numbers even where it does not shuffle.
    return DataLoader(rows, EVAL_BATCH_SIZE, generator=torch.Generator())
