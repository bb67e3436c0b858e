import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from fedhq_lightning.data.columns import as_column, find_column


class Plain(Dataset):
    user = ("a", "b", "a", "c")

    def __len__(self) -> int:
        return 4


def test_columns_of_tables_and_attributes_of_other_datasets() -> None:
    for dataset in (datasets.Dataset.from_dict({"user": list(Plain.user)}), Plain()):
        found = find_column(Subset(dataset, [3, 0]), "user")
        assert found is not None
        assert found.values.tolist() == ["c", "a"]
        assert find_column(dataset, "label") is None


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ([1, 0], [1, 0]),
        ([[1], [0]], [1, 0]),
        ([torch.tensor(1), torch.tensor(0)], [1, 0]),
        (np.array(["a", "b"], dtype=object), ["a", "b"]),
        (np.array(["a", None], dtype=object), None),
        (np.array([1, 0], dtype=object), [1, 0]),
        (torch.tensor([1, 0], dtype=torch.bfloat16), [1, 0]),
        (torch.tensor([1.0, 0.0], requires_grad=True), [1, 0]),
        ({0: 1, 1: 0}, None),
        ({1, 0}, None),
        ([1, None], None),
        ([[1, 0], [0, 1]], None),
        ([[1], [0, 1]], None),
        ([1, 0, 1], None),
        ("ab", None),
        (None, None),
    ],
)
def test_one_number_or_text_per_example(values: object, column: list[object] | None) -> None:
    found = as_column(values, 2)
    assert (None if found is None else found.tolist()) == column
