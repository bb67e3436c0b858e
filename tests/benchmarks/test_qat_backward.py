"""The benchmark of QAT's backward: partition, what is kept, its table and its verdict, and one short run."""

from pathlib import Path

import torch
from qat_backward import BACKWARDS, CLIENTS, SCHEMES, TASKS, Cell, Score, cells_of, compare, keep, partition, read, run
from qat_backward import verdict as verdict_of


def test_every_example_has_one_client() -> None:
    labels = torch.arange(200) % 10
    for clients in CLIENTS:
        parts = partition(labels, clients)
        assert len(parts) <= clients
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(200))
    assert max((labels[rows].bincount(minlength=10).max() / len(rows)) for rows in parts) > 0.3  # skewed


def test_runs_are_kept_and_found_again(tmp_path: Path) -> None:
    file, cells = tmp_path / "folder" / "cells.jsonl", list(cells_of(2, 3))
    assert len(set(cells)) == 2 * len(TASKS) * len(SCHEMES) * len(CLIENTS) * len(BACKWARDS)
    assert read(file) == {}
    scores = {cells[0]: Score(91.5, 0.25), cells[1]: Score(90.0, 0.5)}
    for cell, score in scores.items():
        keep(file, cell, score)
    assert read(file) == scores


def test_settings_are_compared_by_seed_and_the_verdict_counts_those_that_are_worse() -> None:
    values = {"w2a8": ((80.0, 82.0, 81.0), (85.0, 87.1, 86.0)), "w4a8": ((90.0, 92.0, 94.0), (91.0, 92.0, 93.0))}
    scores = {
        Cell("task", scheme, 1, backward, seed, 8): Score(accuracy, 0.1)
        for scheme, pair in values.items()
        for backward, accuracies in zip(BACKWARDS, pair, strict=True)
        for seed, accuracy in enumerate(accuracies)
    }
    table, differences = compare(scores)
    assert "| task | w2a8 | 1 | 81.0 | 86.0 | -5.0 [-5.2, -4.9] |" in table
    assert [difference.high < 0 for difference in differences] == [True, False]
    assert "in 1 of 2 settings; the mean difference of all is -2.52 points" in verdict_of(differences)


def test_a_run_depends_on_its_backward_and_on_nothing_else() -> None:
    one = Cell("MLP, MNIST-5k", "w4a8", 1, "int8", 0, 1)
    again, other = run(one), run(Cell(**{**vars(one), "backward": "bf16"}))
    assert run(one) == again
    assert again != other
    assert min(again.accuracy, other.accuracy) > 80
