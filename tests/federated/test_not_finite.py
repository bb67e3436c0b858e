"""Where a client's data hold values that are not finite, in words."""

import math
import re
from typing import Any

import pytest
import torch

from fedhq_lightning.federated.not_finite import odd_values

NAMES = ["age", "bmi", "dose"]


def table(*cells: tuple[int, int], rows: int = 4, columns: int = 3) -> torch.Tensor:
    values = torch.zeros(rows, columns)
    for row, column in cells:
        values[row, column] = math.nan
    return values


LABELS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "names", "said"),
    [
        (
            (table((0, 1), (2, 1), (2, 0)), LABELS),
            (),
            r"its inputs have such values from the first training batch on, in 2 of 4 examples, in columns 0, 1 "
            r"\(the first is 0\)$",
        ),
        ((table((3, 2)), LABELS), NAMES, "its inputs .*, in 1 of 4 examples, in column dose$"),
        ((table(), table((1, 0), columns=1)), NAMES, r"its targets .* in column 0 \(the first is 0\)$"),
        ({"x": {"pixels": torch.full((2, 1, 3, 3), math.inf)}}, NAMES, "its x.pixels .*, in 2 of 2 examples$"),
        ((table(), table(), table((0, 0))), (), "its parts 2 have"),
        ([table((0, 0), columns=9)], NAMES, r"its parts 0 .* in column 0 \(the first is 0\)$"),
        (table(*((0, column) for column in range(9)), columns=9), (), ".* in columns 0, 1, 2, 3, 4 and 4 more "),
    ],
)
def test_part_and_columns(batch: Any, names: list[str], said: str) -> None:
    found = odd_values([batch], names)
    assert found is not None
    assert re.match(said, found.words)


def test_all_batches_count_and_the_first_of_them_is_named() -> None:
    batches = [(table(), LABELS), (table((1, 1)), LABELS), (table((0, 0), (3, 0), rows=5), LABELS)]
    found = odd_values(batches, NAMES)
    assert found is not None
    assert found.batch is batches[1]
    assert (
        found.words == "its inputs have such values from training batch 2 on, in 3 of 13 examples, in columns age, bmi"
    )


@pytest.mark.parametrize("batch", [(table(), LABELS), [], {}, "text", torch.tensor(math.nan), None])
def test_nothing_where_all_is_finite_or_nothing_has_examples(batch: Any) -> None:
    assert odd_values([batch]) is None
