"""What a comparison came to, in a sentence."""

import math

import pytest

from fedhq_lightning.experiments.answer import answer
from fedhq_lightning.experiments.outcomes import outcomes, rows_of

from .made_cells import deployed, made_cell


def told(better: list[float | None], baseline: str = "plain", larger_is_better: bool = True) -> str:
    """Of a comparison of `plain`, which has 0.5, 0.6 and 0.7, with another."""
    cells = [
        deployed(made_cell(name, seed, 10.0, [0.1, value], larger_is_better=larger_is_better))
        for name, values in (("plain", [0.5, 0.6, 0.7]), ("other", better))
        for seed, value in enumerate(values)
    ]
    found = outcomes(cells)
    return answer(rows_of(found, baseline), baseline, found[0].deployed_on, larger_is_better)


def test_the_best_its_lead_and_whether_that_may_be_chance() -> None:
    text = told([0.6, 0.71, 0.8])
    assert text.startswith(
        "Best deployed model: other, val_accuracy 0.7033 ± 0.1002 over 3 seeds; less plain: +0.1033 ["
    )
    assert text.endswith("], beyond chance at 95 %.")
    assert told([0.4, 0.9, 0.8]).endswith("], which may be chance.")


def test_where_the_baseline_is_the_best() -> None:
    text = told([0.4, 0.5, 0.6])
    assert text.startswith(
        "Best deployed model: plain, val_accuracy 0.6000 ± 0.1000 over 3 seeds; next other, less it: -"
    )
    assert told([0.4, 0.5, 0.6], larger_is_better=False).startswith("Best deployed model: other, ")


def test_what_cannot_be_told_is_not() -> None:
    assert told([0.7]).endswith("; less plain: +0.2000, of too few seeds to be told from chance.")
    assert told([0.9, 0.9, 0.9], baseline="other").count(";") == 1
    assert told([None]).startswith("Best deployed model: plain, ")
    assert answer([], "plain", "val_accuracy", True) == ""
    assert "nan" not in told([0.7, math.nan, 0.8])


@pytest.mark.parametrize("baseline", ["plain", "other"])
def test_one_alone(baseline: str) -> None:
    found = outcomes([deployed(made_cell("plain", 0, 10.0, [0.1, 0.5]))])
    assert answer(rows_of(found, baseline), baseline, "val_accuracy", True) == (
        "Best deployed model: plain, val_accuracy 0.5000."
    )
