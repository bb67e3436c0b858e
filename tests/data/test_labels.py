from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fedhq_lightning.data.labels import class_numbers, find_labels, why_no_classes
from fedhq_lightning.errors import ConfigurationError

LABELS = [2, 0, 1, 1]


class Plain(Dataset):
    def __init__(self, **attributes: object) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"label": LABELS[index]}


@pytest.mark.parametrize(
    "dataset",
    [
        Plain(targets=LABELS),
        Plain(targets=torch.tensor(LABELS)),
        Plain(labels=np.array(LABELS)),
        Plain(targets=["far", "too", "many", "boxes", "here"], labels=LABELS),
        TensorDataset(torch.zeros(4, 3), torch.tensor(LABELS)),
        Subset(Plain(targets=[1, *LABELS[1:], 2][:4]), [0, 1, 2, 3]),
        Subset(Subset(TensorDataset(torch.zeros(4), torch.tensor([1, 1, 0, 2])), [3, 2, 1, 0]), [0, 1, 2, 3]),
        ConcatDataset([TensorDataset(torch.zeros(1), torch.tensor([2])), Subset(Plain(targets=LABELS), [1, 2, 3])]),
    ],
)
def test_labels_are_found_by_themselves(dataset: Dataset) -> None:
    found = find_labels(dataset)
    assert found is not None
    assert found.values[1:].tolist() == LABELS[1:]


@pytest.mark.parametrize(
    "dataset",
    [
        Plain(),
        Plain(targets=[[1], [1, 2], [3], []]),
        Plain(targets="abcd"),
        Plain(targets=[{"box": 1}] * 4),
        TensorDataset(torch.arange(4)),
        TensorDataset(torch.zeros(4), torch.zeros(4, 2)),
        ConcatDataset([Plain(targets=LABELS), Plain()]),
        ConcatDataset([Plain(targets=LABELS), Plain(targets=list("abcd"))]),
        Plain(targets=[1, None, 0, 2]),
        Plain(labels=["neg", "pos"]),  # names of classes
    ],
)
def test_nothing_is_taken_for_labels_that_is_not(dataset: Dataset) -> None:
    assert find_labels(dataset) is None


def test_label_function_comes_first() -> None:
    labels = find_labels(Plain(targets=[9, 9, 9, 9]), lambda example: example["label"])
    assert labels is not None
    assert labels.values.tolist() == LABELS


def test_label_function_that_fails_or_gives_no_label() -> None:
    with pytest.raises(ConfigurationError, match="failed on an example of Plain: KeyError"):
        find_labels(Plain(), lambda example: example["lable"])
    with pytest.raises(ConfigurationError, match="returned dict"):
        find_labels(Plain(), lambda example: example)


@pytest.mark.parametrize(
    ("labels", "numbers", "num_classes"),
    [
        ([0, 2, 2, 0], [0, 2, 2, 0], 3),
        ([-1, 1, 1, -1], [0, 1, 1, 0], 2),
        (["b", "a", "b", "c"], [1, 0, 1, 2], 3),
        ([True, False, True, True], [1, 0, 1, 1], 2),
        ([10**12, 5, 5, 5], [1, 0, 0, 0], 2),
        (np.array([0, 255, 255], np.uint8), [0, 1, 1], 2),
        ([0.0, 2.0, 2.0, 0.0], [0, 2, 2, 0], 3),
        (np.array([-1.0, 1.0], np.float16), [0, 1], 2),
        (np.arange(20), list(range(20)), 20),  # few examples: each may well be the only one of its class
        (np.arange(30) // 2, [row // 2 for row in range(30)], 15),
    ],
)
def test_class_numbers(labels: list[object], numbers: list[int], num_classes: int) -> None:
    found = class_numbers(np.asarray(labels))
    assert found is not None
    assert found[0].tolist() == numbers
    assert found[0].dtype == np.int64
    assert found[1] == num_classes


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([0.5, 1.0], "float64 with fractions"),
        ([0.0, np.nan], "missing or infinite numbers"),
        (np.arange(42.0) // 2, "float64 with 21 different values in 42 examples"),
        (np.arange(40), "40 different values in 40 examples"),
        ([f"image-{row}.png" for row in range(30)], "30 different values in 30 examples"),
    ],
)
def test_measured_values_and_ids_are_not_classes(labels: Any, why: str) -> None:
    assert class_numbers(np.asarray(labels)) is None
    assert why_no_classes(np.asarray(labels)) == why


X = torch.zeros(4, 3)
FLOATS = torch.tensor([0.3, 0.1, 0.2, 0.4])


@pytest.mark.parametrize(
    ("tensors", "tensor"),
    [
        ((X, torch.tensor(LABELS)), 2),
        ((X, FLOATS), 2),
        ((X, torch.tensor(LABELS)[:, None]), 2),
        ((X, torch.tensor(LABELS), FLOATS), 2),  # weights of examples
        ((X, X, torch.tensor(LABELS, dtype=torch.uint8)), 3),
        ((torch.arange(4), X, torch.tensor(LABELS) > 0), 3),
        ((X, torch.tensor(LABELS), torch.tensor([7, 9, 8, 9])), None),  # labels and lengths, in whichever order
        ((X, FLOATS, FLOATS), None),
        ((torch.tensor(LABELS), X), None),
        ((torch.tensor(LABELS),), None),
        ((X, torch.eye(4)), None),
    ],
)
def test_which_tensor_holds_labels(tensors: tuple[torch.Tensor, ...], tensor: int | None) -> None:
    found = find_labels(TensorDataset(*tensors))
    assert (found and found.source) == (tensor and f"tensor {tensor} of TensorDataset")
    assert found is None or found.values.tolist() == tensors[(tensor or 0) - 1].flatten().tolist()


WORDS = ["c", "a", "b", "b"]
CLASSES = datasets.ClassLabel(names=["x", "y", "z"])


def table(**columns: Any) -> datasets.Dataset:
    """Columns of LABELS: `datasets.ClassLabel` where that is given, else the values themselves."""
    classes = {name: kind for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel)}
    values = {name: LABELS if name in classes else values for name, values in columns.items()}
    made = datasets.Dataset.from_dict(values)
    return made.cast(datasets.Features({**made.features, **classes}))


@pytest.mark.parametrize(
    ("rows", "named", "column"),
    [
        (table(label=LABELS, user=WORDS), None, "label"),
        (table(labels=WORDS, user=LABELS), "user", "labels"),
        (table(digit=CLASSES, user=WORDS), "user", "digit"),
        (table(digit=CLASSES, target=WORDS), None, "digit"),
        (table(fine=CLASSES, coarse=CLASSES), "coarse", "coarse"),
        (table(fine=CLASSES, coarse=CLASSES), None, None),
        (table(fine=CLASSES, coarse=CLASSES, label=WORDS), None, "label"),
        (table(label=LABELS, target=WORDS), None, None),
        (table(label=LABELS, target=WORDS), "target", "target"),
        (table(user=WORDS), "user", "user"),
        (table(user=WORDS), None, None),
        (table(label=[1, None, 0, 1]), None, None),
        (table(labels=[[1], [0, 1], [], [1]]), None, None),
        (table(label=LABELS).with_format("torch"), None, "label"),
        (table(label=LABELS, x=LABELS).with_format("numpy", columns=["x"]), None, "label"),
        (
            table(label=LABELS).with_transform(lambda batch: {"label": ["transformed"] * len(batch["label"])}),
            None,
            "label",
        ),
    ],
)
def test_which_column_of_a_table_holds_labels(rows: datasets.Dataset, named: str | None, column: str | None) -> None:
    found = find_labels(Subset(rows, [3, 0]), named_column=named)
    assert (found and found.source) == (column and f"column {column!r} of Dataset")
    assert found is None or found.values.tolist() in ([1, 2], ["b", "c"])


def test_labels_are_those_of_the_examples_where_the_dataset_transforms_them() -> None:
    found = find_labels(Plain(targets=LABELS, target_transform=lambda label: label % 2))
    assert found is not None
    assert found.values.tolist() == [0, 0, 1, 1]
    assert find_labels(Plain(targets=LABELS, target_transform=lambda label: [label, label])) is None


def test_a_label_function_that_misses_labels_says_what_it_gave() -> None:
    with pytest.raises(ConfigurationError, match="returned NoneType; it must return one number or string per example"):
        find_labels(Plain(), lambda example: example["label"] or None)
