"""The fit on clients' messages is the one that scikit-learn makes of all rows together."""

import json
from dataclasses import asdict
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fedhq_lightning.data.table_cells import ClientTable
from fedhq_lightning.data.table_fit import counted, fit_tables, squares_about
from fedhq_lightning.data.table_form import CategoryColumn, NumberColumn, TableForm
from fedhq_lightning.data.table_reader import TableReader

READER = TableReader("y", None, (), (), frozenset({""}), 100, "utf-8", ",")


def table(name: str, *rows: str, header: str = "age,size,y") -> ClientTable:
    content = "\n".join([header, *rows]).encode()
    return next(READER.clients(f"{name}.csv", content))[1]


def fitted(*tables: ClientTable) -> TableForm:
    return fit_tables([(each, torch.arange(len(each))) for each in tables], "y")


def numbers(form: TableForm) -> list[NumberColumn]:
    return [column for column in form.columns if isinstance(column, NumberColumn)]


class TestAgainstScikitLearn:
    def test_means_and_scales_are_those_of_all_rows(self) -> None:
        random = np.random.default_rng(0)
        values = random.normal(40, 12, 90).astype(np.float32)
        parts = np.split(values, [5, 6, 40])
        form = fitted(*(table(str(at), *(f"{x},s,{i % 2}" for i, x in enumerate(p))) for at, p in enumerate(parts)))
        scaler = StandardScaler().fit(values[:, None].astype(np.float64))
        (age,) = numbers(form)
        assert age.mean == pytest.approx(scaler.mean_[0], rel=1e-14)
        assert age.scale == pytest.approx(scaler.scale_[0], rel=1e-14)

    def test_categories_are_those_of_all_rows(self) -> None:
        form = fitted(table("a", "1,small,0", "2,large,1"), table("b", "1,,0", "2,medium,1"))
        encoder = OneHotEncoder().fit([["small"], ["large"], ["medium"]])
        assert form.columns[1] == CategoryColumn("size", tuple(encoder.categories_[0]))

    def test_missing_values_count_for_nothing(self) -> None:
        (age,) = numbers(fitted(table("a", "1,s,0", ",s,1"), table("b", "3,s,0")))
        assert (age.mean, age.scale) == (2.0, 1.0)


class TestExactness:
    def test_neither_the_order_of_clients_nor_of_rows_changes_a_bit(self) -> None:
        rows = [f"{x!r},s,{i % 2}" for i, x in enumerate(np.random.default_rng(1).normal(0, 1e3, 30).tolist())]
        tables = [table(str(at), *rows[at::3]) for at in range(3)]
        expected = numbers(fitted(*tables))
        for order in permutations(tables):
            assert numbers(fitted(*order)) == expected
        assert numbers(fitted(*(table(str(at), *rows[at::3][::-1]) for at in range(3)))) == expected

    def test_a_small_spread_about_a_large_mean_is_not_lost(self) -> None:
        # Sums of squares about zero give a negative variance here.
        (age,) = numbers(fitted(table("a", "16777213,s,0", "16777214,s,1"), table("b", "16777215,s,0")))
        assert (age.mean, age.scale) == (16777214.0, pytest.approx((2 / 3) ** 0.5, rel=1e-12))

    @pytest.mark.parametrize("value", ["0.1", "-3e7", "0"])
    def test_a_column_of_one_value_has_scale_1(self, value: str) -> None:
        (age,) = numbers(fitted(*(table(str(at), *[f"{value},s,{at % 2}"] * (at + 1)) for at in range(7))))
        assert age.scale == 1.0
        assert age.mean == np.float32(value)


class TestWhatLeavesAClient:
    def test_is_counts_and_sums_alone(self) -> None:
        one = table("a", "1,small,no", "2,small,yes", ",large,yes")
        assert one.columns is not None
        told = counted(one.columns, one.labels)
        assert json.loads(json.dumps(asdict(told))) == {
            "numbers": {"age": [2, 3.0]},
            "categories": {"size": {"small": 2, "large": 1}},
            "classes": {"no": 1, "yes": 2},
        }
        assert squares_about(one.columns, {"age": 1.0}) == {"age": 1.0}


def test_classes_of_whole_numbers_stand_by_size() -> None:
    assert fitted(table("a", "1,s,10", "1,s,9"), table("b", "1,s,9.0")).classes == ("9", "10")
