import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fedhq_lightning.data.labels import class_numbers, find_column, find_labels
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
    assert found[1:].tolist() == LABELS[1:]


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
    ],
)
def test_nothing_is_taken_for_labels_that_is_not(dataset: Dataset) -> None:
    assert find_labels(dataset) is None


def test_label_function_comes_first() -> None:
    labels = find_labels(Plain(targets=[9, 9, 9, 9]), lambda example: example["label"])
    assert labels is not None
    assert labels.tolist() == LABELS


def test_label_function_that_fails_or_gives_no_label() -> None:
    with pytest.raises(ConfigurationError, match="failed on an example of Plain: KeyError"):
        find_labels(Plain(), lambda example: example["lable"])
    with pytest.raises(ConfigurationError, match="returned dict"):
        find_labels(Plain(), lambda example: example)


def test_columns_of_hugging_face_datasets() -> None:
    table = datasets.Dataset.from_dict({"writer": ["a", "b", "a", "c"]})
    found = find_column(Subset(table, [3, 0]), "writer")
    assert found is not None
    assert found.tolist() == ["c", "a"]
    assert find_column(table, "label") is None
    assert find_column(Plain(targets=LABELS), "targets") is None


@pytest.mark.parametrize(
    ("labels", "numbers", "num_classes"),
    [
        ([0, 2, 2, 0], [0, 2, 2, 0], 3),
        ([-1, 1, 1, -1], [0, 1, 1, 0], 2),
        (["b", "a", "b", "c"], [1, 0, 1, 2], 3),
        ([True, False, True, True], [1, 0, 1, 1], 2),
        ([10**12, 5, 5, 5], [1, 0, 0, 0], 2),
    ],
)
def test_class_numbers(labels: list[object], numbers: list[int], num_classes: int) -> None:
    found = class_numbers(np.asarray(labels))
    assert found is not None
    assert found[0].tolist() == numbers
    assert found[0].dtype == np.int64
    assert found[1] == num_classes


def test_real_numbers_are_not_classes() -> None:
    assert class_numbers(np.array([0.5, 1.0])) is None
