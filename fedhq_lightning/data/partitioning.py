"""Row numbers per client from a flwr-datasets partitioner, fast enough for 10,000 clients.

Imports Hugging Face's datasets (not flwr-datasets itself, which the partitioner's owner has imported), so import this
module where it is used.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from numpy.typing import NDArray

from fedhq_lightning.data.columns import Column
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.quiet import libraries_quiet

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

ROW_COLUMN = "fedhq_row"
_NOISE = (r"The specified min_partition_size \(", "Specifying null_placement in SortOptions is deprecated")
"""Dirichlet warns before each of its own retries, where the outcome is what counts; datasets' sort uses a deprecated
option of pyarrow.
"""


class _SelectedRows:
    """What a partitioner gets for a selection of a `_RowTable`: the row numbers, and nothing else."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.rows = rows


class _RowTable(datasets.Dataset):  # type: ignore[misc]  # datasets ships no types
    """A dataset of row numbers and the columns to partition by.

    A selection from an ordinary `datasets.Dataset` costs half a millisecond of hashing and table building, 8 s for
    10,000 clients. Partitioners only hand selections on, so here a selection is an array.
    """

    def select(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
        # Partitioners give indices alone; with anything else it is the dataset calling itself, as `sort` does.
        if args or kwargs:
            return super().select(indices, *args, **kwargs)
        return _SelectedRows(self._rows()[np.asarray(indices, dtype=np.int64)])

    def sort(self, *args: Any, **kwargs: Any) -> "_RowTable":
        table: _RowTable = _RowTable.from_dict(super().sort(*args, **kwargs).to_dict())
        return table

    def _rows(self) -> NDArray[np.int64]:
        if not hasattr(self, "_row_numbers"):
            self._row_numbers: NDArray[np.int64] = self.data.column(ROW_COLUMN).to_numpy()
        return self._row_numbers


def partition_rows(
    partitioner: "Partitioner", rows: NDArray[np.int64], columns: dict[str, Column]
) -> list[NDArray[np.int64]]:
    """Rows of every client.

    The partitioner itself is left as it was, so that one object can partition several datasets.

    Args:
        partitioner: Any partitioner that assigns whole examples.
        rows: (num_examples,) row numbers, in the order in which the partitioner is to see them.
        columns: By name, (num_examples,) values in the order of `rows`.

    Returns:
        One int64 array per client, possibly empty, in the partitioner's order.

    Raises:
        ConfigurationError: The partitioner refuses; it holds a dataset already; it splits columns; it has no seed.
    """
    name = type(partitioner).__name__
    if partitioner.is_dataset_assigned():
        raise ConfigurationError(f"{name} was already used for another dataset: make a new one for this data module")
    if getattr(partitioner, "_seed", 0) is None:
        raise ConfigurationError(f"{name} seed null: every process would partition differently; give an integer")
    partitioner = copy.deepcopy(partitioner)
    with libraries_quiet(noise=_NOISE), _without_its_bar():
        try:
            table = _RowTable.from_dict({ROW_COLUMN: rows, **columns})
            partitioner.dataset = table
            partitions = (partitioner.load_partition(number) for number in range(partitioner.num_partitions))
            return [_row_numbers(partition, table, name) for partition in partitions]
        except ConfigurationError:
            raise
        # Whatever a partitioner raises comes from its settings and this data; both are the user's to mend.
        except Exception as error:
            raise ConfigurationError(
                f"{name} cannot partition these {len(rows)} examples: "
                f"{str(error).rstrip('. ') or type(error).__name__}{_advice(partitioner)}"
            ) from error


@contextmanager
def _without_its_bar() -> Iterator[None]:
    """Within, NaturalIdPartitioner counts rows without a progress bar on stderr."""
    module = sys.modules.get("flwr_datasets.partitioner.natural_id_partitioner")
    bar = getattr(module, "tqdm", None)
    if module is None or bar is None:
        yield
        return
    module.tqdm = lambda rows, **_: rows  # type: ignore[attr-defined]  # what it has imported, in its place
    try:
        yield
    finally:
        module.tqdm = bar  # type: ignore[attr-defined]  # as above


def _row_numbers(partition: Any, table: _RowTable, name: str) -> NDArray[np.int64]:
    if isinstance(partition, _SelectedRows):
        return partition.rows
    if set(partition.column_names) != set(table.column_names):
        raise ConfigurationError(
            f"{name} splits columns, not examples; use one that assigns examples, such as IidPartitioner, "
            f"DirichletPartitioner or PathologicalPartitioner"
        )
    return np.asarray(partition[ROW_COLUMN][:], dtype=np.int64)


def _advice(partitioner: "Partitioner") -> str:
    smallest = getattr(partitioner, "_min_partition_size", None)
    if not smallest:
        return ""
    return (
        f"; its min_partition_size is {smallest} (10 unless given): set min_partition_size: 0 to allow small and empty "
        f"clients, or raise alpha, or lower num_partitions"
    )
