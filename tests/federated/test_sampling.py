"""Cohorts: uniform, without replacement, from the seed and the round alone."""

from collections import Counter

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.sampling import CohortSampler


def test_depends_on_seed_and_round_only() -> None:
    first = [CohortSampler(range(50), 10, 1).cohort(number) for number in range(5)]
    sampler = CohortSampler(range(50), 10, 1)
    assert [sampler.cohort(number) for number in reversed(range(5))] == first[::-1]
    assert len({tuple(cohort) for cohort in first}) == 5
    assert first != [CohortSampler(range(50), 10, 2).cohort(number) for number in range(5)]


def test_no_client_twice_and_in_order() -> None:
    ids = ["d", "a", "c", "b", "e"]
    for number in range(30):
        cohort = CohortSampler(ids, 3, 0).cohort(number)
        assert len(set(cohort)) == 3
        assert cohort == sorted(cohort, key=ids.index)


def test_is_uniform() -> None:
    counts = Counter(client for number in range(2000) for client in CohortSampler(range(10), 3, 0).cohort(number))
    assert all(abs(counts[client] - 600) < 80 for client in range(10))  # standard deviation 20.5


@pytest.mark.parametrize(
    ("asked", "size"), [(None, 8), (8, 8), (1, 1), (0.5, 4), (1.0, 8), (0.01, 1), (0.44, 4), (0.43, 3)]
)
def test_cohort_size(asked: int | float | None, size: int) -> None:
    sampler = CohortSampler(range(10), asked, 0, frozenset({2, 7}))
    assert sampler.cohort_size == size
    assert len(sampler.cohort(1)) == size


def test_empty_clients_are_never_drawn() -> None:
    sampler = CohortSampler("abcdef", 3, 0, frozenset({1, 4}))
    assert list(sampler.with_data()) == ["a", "c", "d", "f"]
    assert {client for number in range(60) for client in sampler.cohort(number)} == {"a", "c", "d", "f"}
    everyone = range(5)
    assert CohortSampler(everyone, 3, 0).with_data() is everyone


@pytest.mark.parametrize(
    ("ids", "asked", "empty", "message"),
    [
        ([], None, (), "no clients"),
        ([1, 2], None, (0, 1), "all 2 clients are empty"),
        ([1, 2, 3], 4, (), r"clients_per_round 4: must be 1\.\.3"),
        ([1, 2, 3], 3, (0,), r"must be 1\.\.2, the clients that hold data"),
        ([1, 2, 3], 0, (), "clients_per_round 0"),
        ([1, 2, 3], -2, (), "clients_per_round -2"),
        ([1, 2, 3], 0.0, (), "fraction must be in"),
        ([1, 2, 3], 1.5, (), "for a count give an integer"),
        ([1, 2, 3], float("nan"), (), "fraction must be in"),
    ],
)
def test_refuses(ids: list[int], asked: int | float | None, empty: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CohortSampler(ids, asked, 0, frozenset(empty))


def test_a_million_clients_cost_no_list() -> None:
    sampler = CohortSampler(range(1_000_000), 100, 0)
    assert isinstance(sampler._positions, range)
    assert len(set(sampler.cohort(1))) == 100
