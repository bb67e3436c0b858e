"""What a partitioner deals by, and what clients tell as their labels: every combination, by its numbers."""

from itertools import count
from typing import Any

import datasets
import pytest
import torch
from flwr_datasets import partitioner as flwr
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from fedhq_lightning import PartitionedDataModule
from fedhq_lightning.errors import ConfigurationError

from .test_client_loaders import Given

SIZE = 60
CLASSES = [row % 2 for row in range(SIZE)]
USERS = [f"u{row % 3}" for row in range(SIZE)]  # every user holds 10 of each class
Y = torch.tensor(CLASSES)
X = torch.zeros(SIZE, 4)
MEASURED = torch.linspace(0, 1, SIZE)
BY_USER = [20, 20, 20]
EACH_USERS = [[10, 10]] * 3
BY_CLASS = [30, 30]
EACH_CLASS = [[30, 0], [0, 30]]


class Items(Dataset):
    """Examples with the given attributes on the dataset."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": X[index], "label": CLASSES[index], "user": USERS[index]}


def table(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def of_classes(name: str, **columns: list[Any]) -> datasets.Dataset:
    return table(**{name: CLASSES, **columns}).cast_column(name, datasets.ClassLabel(names=["no", "yes"]))


def one_class_each(column: str = "label") -> flwr.Partitioner:
    return flwr.PathologicalPartitioner(2, column, 1, class_assignment_mode="deterministic")


def label_of(example: Any) -> int:
    return int(example["label"])


USER_OR_LABEL = table(label=CLASSES, user=USERS)
WORDS = ["yes" if each else "no" for each in CLASSES]

IDS = count()

Table = tuple[Any, flwr.Partitioner, Any, list[int], list[list[int]] | None]
RIGHT: dict[str, Table] = {
    # a table's users
    "users, labels by name": (USER_OR_LABEL, flwr.NaturalIdPartitioner("user"), None, BY_USER, EACH_USERS),
    "users, label function": (USER_OR_LABEL, flwr.NaturalIdPartitioner("user"), label_of, BY_USER, EACH_USERS),
    "users, no labels": (table(user=USERS), flwr.NaturalIdPartitioner("user"), None, BY_USER, None),
    "users, ClassLabel": (of_classes("y", user=USERS), flwr.NaturalIdPartitioner("user"), None, BY_USER, EACH_USERS),
    "users in groups": (USER_OR_LABEL, flwr.GroupedNaturalIdPartitioner("user", 3), None, [60], [[30, 30]]),
    "users of a subset": (
        Subset(USER_OR_LABEL, range(30)), flwr.NaturalIdPartitioner("user"), None, [10] * 3, [[5, 5]] * 3
    ),
    "a format that hides columns": (
        USER_OR_LABEL.with_format("torch", columns=["label"]),
        flwr.NaturalIdPartitioner("user"), None, BY_USER, EACH_USERS,
    ),
    # users of other data
    "users as an attribute": (Items(user=USERS), flwr.NaturalIdPartitioner("user"), label_of, BY_USER, EACH_USERS),
    "users as an attribute, labels too": (
        Items(user=USERS, targets=Y), flwr.NaturalIdPartitioner("user"), None, BY_USER, EACH_USERS
    ),
    # by label, called by whatever name
    "label column": (USER_OR_LABEL, one_class_each(), None, BY_CLASS, EACH_CLASS),
    "words": (table(label=WORDS), one_class_each(), None, BY_CLASS, EACH_CLASS),
    "ClassLabel of another name": (of_classes("y", user=USERS), one_class_each(), None, BY_CLASS, EACH_CLASS),
    "by label on users": (
        USER_OR_LABEL, flwr.PathologicalPartitioner(3, "user", 1, "deterministic"), None, BY_USER, EACH_USERS
    ),
    "named column is label": (table(digit=CLASSES, user=USERS), one_class_each("digit"), None, BY_CLASS, EACH_CLASS),
    "label function in place of the column": (
        table(label=[0.5] * SIZE, digit=CLASSES), one_class_each(), lambda row: row["digit"], BY_CLASS, EACH_CLASS
    ),
    "any word for labels": (TensorDataset(X, Y), one_class_each("class"), None, BY_CLASS, EACH_CLASS),
    "any word for a label function": (Items(), one_class_each("class"), label_of, BY_CLASS, EACH_CLASS),
    "clients are classes": (TensorDataset(X, Y), flwr.NaturalIdPartitioner("label"), None, BY_CLASS, EACH_CLASS),
    # kinds of labels
    "weight": (TensorDataset(X, Y, torch.rand(SIZE)), one_class_each(), None, BY_CLASS, EACH_CLASS),
    "uint8": (TensorDataset(X, Y.byte()), one_class_each(), None, BY_CLASS, EACH_CLASS),
    "bool": (TensorDataset(X, Y.bool()), one_class_each(), None, BY_CLASS, EACH_CLASS),
    "float": (TensorDataset(X, Y.float()), one_class_each(), None, BY_CLASS, EACH_CLASS),
    "a column of one": (TensorDataset(X, Y[:, None]), one_class_each(), None, BY_CLASS, EACH_CLASS),
    "random_split": (
        random_split(Subset(Items(targets=WORDS), range(SIZE)), [SIZE])[0], one_class_each(), None, BY_CLASS, EACH_CLASS
    ),
    "concatenated": (
        ConcatDataset([Subset(TensorDataset(X, Y), range(30)), Subset(Items(labels=CLASSES), range(30, 60))]),
        one_class_each(), None, BY_CLASS, EACH_CLASS,
    ),
    # labels only counted, or not known
    "counted": (TensorDataset(X, Y), flwr.SizePartitioner([60]), None, [60], [[30, 30]]),
    "two of whole numbers": (TensorDataset(X, Y, Y + 7), flwr.SizePartitioner([60]), None, [60], None),
    "one-hot": (TensorDataset(X, torch.eye(2)[Y]), flwr.SizePartitioner([60]), None, [60], None),
    "regression by its target": (
        TensorDataset(X, MEASURED), flwr.ContinuousPartitioner(3, "target", strictness=1), None, BY_USER, None
    ),
}  # fmt: skip


@pytest.mark.parametrize(("dataset", "partitioner", "label_fn", "sizes", "counts"), RIGHT.values(), ids=RIGHT)
def test_sizes_and_label_counts(
    dataset: Any,
    partitioner: flwr.Partitioner,
    label_fn: Any,
    sizes: list[int],
    counts: list[list[int]] | None,
    recwarn: pytest.WarningsRecorder,
) -> None:
    module = PartitionedDataModule(Given(DataLoader(dataset, 8)), partitioner, label_fn)
    assert [module.num_examples(client_id) for client_id in module.client_ids] == sizes
    told = [module.label_counts(client_id) for client_id in module.client_ids]
    assert [None if each is None else each.tolist() for each in told] == (counts or [None] * len(sizes))
    assert len(recwarn) == (isinstance(dataset, TensorDataset) and dataset.tensors[-1] is MEASURED)


@pytest.mark.parametrize(
    ("dataset", "partitioner", "label_fn", "said"),
    [
        (
            TensorDataset(X, Y),
            flwr.NaturalIdPartitioner("user"),
            None,
            "NaturalIdPartitioner partitions by 'user', but TensorDataset of Given has no such value per example: give "
            "the dataset an attribute 'user'",
        ),
        (Items(targets=Y), flwr.NaturalIdPartitioner("user"), label_of, "give the dataset an attribute 'user'"),
        (TensorDataset(X, Y), flwr.ContinuousPartitioner(3, "age", strictness=1), None, "attribute 'age'"),
        (USER_OR_LABEL, flwr.NaturalIdPartitioner("usr"), label_of, "it has label, user; did you mean 'user'"),
        (USER_OR_LABEL, one_class_each("usr"), None, "no such column; it has label, user; did you mean 'user'"),
        (table(label=[None, *CLASSES[1:]]), one_class_each(), None, "one number or text per example in that column"),
        (table(label=[[0, 1], *([each] for each in CLASSES[1:])]), one_class_each(), None, "in that column"),
        (
            table(user=[None, *USERS[1:]]),
            flwr.NaturalIdPartitioner("user"),
            lambda row: 0,
            "text per example in that column",
        ),
        (Items(), one_class_each(), None, "Items of Given shows no labels: .*; give label_fn"),
        (
            TensorDataset(X, Y, Y + 7),
            one_class_each(),
            None,
            "TensorDataset of Given shows no labels: .*; give label_fn",
        ),
        (TensorDataset(X, torch.eye(2)[Y]), one_class_each(), None, "shows no labels"),
        (
            TensorDataset(X, MEASURED),
            one_class_each(),
            None,
            "deals by class, but tensor 2 of TensorDataset holds float32 with fractions; give label_fn",
        ),
        (
            USER_OR_LABEL.add_column("age", list(range(SIZE))),
            one_class_each("age"),
            None,
            "column 'age' of Dataset holds 60 different values in 60 examples",
        ),
        (Items(targets=list(map(str, range(SIZE)))), one_class_each(), None, "Items.targets holds 60 different values"),
        (
            Items(),
            one_class_each(),
            lambda example: next(IDS),
            "label_fn '<lambda>' holds 60 different values",
        ),
    ],
)
def test_what_cannot_be_dealt_by(dataset: Any, partitioner: flwr.Partitioner, label_fn: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        PartitionedDataModule(Given(DataLoader(dataset, 8)), partitioner, label_fn).setup("fit")


def test_what_is_no_class_is_told_once_and_only_where_label_counts_are_asked_for() -> None:
    module = PartitionedDataModule(Given(DataLoader(TensorDataset(X, MEASURED), 8)), flwr.IidPartitioner(2))
    module.setup("fit")
    with pytest.warns(UserWarning, match="Given: tensor 2 of TensorDataset holds float32 with fractions") as said:
        assert [module.label_counts(client_id) for client_id in module.client_ids] == [None, None]
    assert len(said) == 1
