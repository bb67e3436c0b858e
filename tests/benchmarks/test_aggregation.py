"""The benchmark of the sum: small models are measured, and the text says what was measured."""

import aggregation
import pytest
import torch


@pytest.mark.parametrize("scheme", aggregation.SCHEMES)
def test_a_row(scheme):
    row = aggregation.row_of("MLP", aggregation.mlp(), scheme, repeats=1)
    assert len(row) == len(aggregation.COLUMNS)
    assert row[1] == "101,770"
    assert float(row[-1]) == pytest.approx(sum(map(float, row[3:6])), abs=0.02)


def test_a_sum():
    summed = aggregation.sum_many({"w": torch.Size([1000, 1000])}, num_updates=2)
    assert summed.sum_seconds > 0
    assert min(summed.copy_seconds, summed.mean_seconds) > 0
    text = aggregation.text_of(aggregation.Summed(0.02, 0.004, 1.0, 36_000_000, 4_000_000), 10**6, [], 2, 3)
    assert "Sum: 20 ms an update, 1.0 GB/s, 50% of a copy's speed" in text
    assert "50 % of a copy's speed, met; 3 models for the sum beside the update, missed" in text
    assert "its peak 9.00 times" in text
