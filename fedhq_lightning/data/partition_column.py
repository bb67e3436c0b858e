"""What a partitioner deals by: a column of the data's own, or their labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedhq_lightning.data.columns import Column, NamedColumn, column_names, find_column, innermost
from fedhq_lightning.data.labels import LABEL_NAMES, whole_numbers, why_no_classes
from fedhq_lightning.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

BY_LABEL = frozenset(
    {
        "DirichletPartitioner",
        "DistributionPartitioner",
        "InnerDirichletPartitioner",
        "PathologicalPartitioner",
        "ShardPartitioner",
    }
)
"""Partitioners of flwr-datasets that deal by class; of the others that take `partition_by`, two go by the data's own
clients, and one by any number."""


def column_name(partitioner: "Partitioner") -> str | None:
    """What the partitioner was told to partition by, or None where it looks at no column."""
    name = getattr(partitioner, "_partition_by", None)
    return None if name is None else str(name)


def deals_by_label(partitioner: "Partitioner") -> bool:
    """Whether the partitioner, or one that it is made from, deals by class."""
    return any(base.__name__ in BY_LABEL for base in type(partitioner).__mro__)


def partition_column(
    partitioner: "Partitioner", dataset: Any, labels: NamedColumn | None, labels_are_given: bool, owner: str
) -> Column:
    """Values of what the partitioner calls its column, in the dataset's order.

    That is the dataset's own column or attribute of this name; where it has none, the labels, for a partitioner that
    deals by label or says "label" itself. Where a label function was given, "label" means what that returns.

    Args:
        partitioner: One with a `column_name`.
        dataset: A map-style dataset.
        labels: Its labels, if they are known.
        labels_are_given: Whether they come from a label function.
        owner: Who gives the dataset, for messages.

    Raises:
        ConfigurationError: There is no such column, or it holds no classes and the partitioner deals by class.
    """
    name, by_label = str(column_name(partitioner)), deals_by_label(partitioner)
    columns = column_names(innermost(dataset))
    given = f"{type(partitioner).__name__} partitions by {name!r}, but {type(innermost(dataset)).__name__} of {owner}"
    column = None if name in LABEL_NAMES and labels_are_given else find_column(dataset, name)
    if column is None:
        # In a table, a name that is neither a column nor the label's is a slip; elsewhere it is of one's own choice.
        means_labels = name in LABEL_NAMES or (by_label and (labels_are_given or not columns))
        if not means_labels or (name in columns and not labels_are_given):
            raise ConfigurationError(f"{given} {_what_is_missing(name, columns)}")
        column = labels
    if column is None:
        raise ConfigurationError(
            f"{given} shows no labels: looked for targets, labels, the second tensor of a TensorDataset (of more than "
            f"two the only one of whole numbers) and a column 'label' or of type ClassLabel; give label_fn, a function "
            f"from an example to its label, or a partitioner without partition_by, such as IidPartitioner"
        )
    if not by_label:
        return column.values
    problem = why_no_classes(column.values)
    if problem is not None:
        raise ConfigurationError(
            f"{type(partitioner).__name__} deals by class, but {column.source} holds {problem}; give label_fn, a "
            f"function from an example to its class, or a partitioner without partition_by, such as IidPartitioner"
        )
    return whole_numbers(column.values)


def _what_is_missing(name: str, columns: Sequence[str]) -> str:
    if name in columns:
        return (
            "does not hold one number or text per example in that column: fill in what is missing, or partition by "
            "another column; for labels, give label_fn, a function from an example to its label"
        )
    if columns:
        return f"has no such column; it has {', '.join(columns)}{nearest(name, columns)}"
    return (
        f"has no such value per example: give the dataset an attribute {name!r} that holds them in its order, or take "
        "a Hugging Face table with that column"
    )
