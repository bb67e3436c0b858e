"""What is known of a run's secure rounds before the first: refused by name, or counted."""

import sys

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.secure import SecureAggregation
from fedhq_lightning.federated.secure.messages import ProtocolError
from fedhq_lightning.federated.secure.run_terms import RunTerms

SHAPES = {"weight": (3, 4), "bias": (3,)}


def terms_of(sizes: list[int], cohort_size: int = 4) -> RunTerms:
    return RunTerms.of(SecureAggregation(), SHAPES, cohort_size, sizes)


def test_the_largest_clients_bound_the_sum() -> None:
    terms = terms_of([5, 1, 9, 2, 3, 4])
    assert terms.grid.max_examples == 9 + 5 + 4 + 3
    assert terms.grid.num_values == 16
    assert terms.threshold == 3
    with pytest.raises(ConfigurationError, match=r"a cohort may hold 536870914 examples, and can have 536870912"):
        terms_of([2**29, 2, 0, 0])


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'fedhq-lightning\[secure\]'"):
        terms_of([1, 1, 1, 1])


def test_a_round_in_which_too_few_are_available_ends_by_name() -> None:
    for cohort in (["a", "b"], []):
        with pytest.raises(ProtocolError, match=f"{len(cohort)} clients: a sum hides"):
            terms_of([1] * 6, 6).of_round("run", 1, cohort)
    with pytest.raises(ProtocolError, match="a cohort of 3 clients, and secure aggregation needs 4"):
        terms_of([1] * 6, 6).of_round("run", 1, ["a", "b", "c"])
    assert terms_of([1] * 6, 6).of_round("run", 1, ["a", "b", "c", 4, 5]).threshold == 4
