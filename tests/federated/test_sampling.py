"""Cohorts: uniform, without replacement, from the seed and the round alone."""

from collections import Counter

import numpy as np
import pytest

from fedhq_lightning.devices import Availability
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.sampling import CohortSampler


def test_depends_on_seed_and_round_only() -> None:
    first = [CohortSampler(range(50), 10, 1).cohort(number) for number in range(5)]
    sampler = CohortSampler(range(50), 10, 1)
    assert [sampler.cohort(number) for number in reversed(range(5))] == first[::-1]
    assert len({tuple(cohort) for cohort in first}) == 5
    assert first != [CohortSampler(range(50), 10, 2).cohort(number) for number in range(5)]


def test_cohorts_never_change() -> None:
    # Recorded: a run that resumes after an update of the package must draw what it would have drawn.
    sampler = CohortSampler(range(20), 4, 3)
    assert [sampler.cohort(number) for number in (1, 2, 3)] == [[0, 10, 17, 19], [4, 10, 11, 14], [0, 5, 13, 14]]
    assert CohortSampler(range(1_000_000), 3, 0).cohort(1) == [259397, 440991, 542311]
    assert CohortSampler("abcdefgh", 0.5, 5, frozenset({2, 4})).cohort(9) == ["b", "f", "h"]


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


class TestWhoHoldsDataIsSeenLater:
    """Clients without data are found when they are drawn."""

    def test_others_take_their_place(self) -> None:
        asked: list[int] = []

        def holds(position: int) -> bool:
            asked.append(position)
            return position % 4 == 0

        sampler = CohortSampler(range(10**9), 50, 0, holds=holds)
        for number in range(1, 9):
            cohort = sampler.cohort(number)
            assert len(set(cohort)) == 50
            assert cohort == sorted(cohort)
            assert all(each % 4 == 0 for each in cohort)
        assert len(asked) < 8 * 50 * 4 * 4

    def test_where_all_hold_data_nothing_changes(self) -> None:
        for size, without, busy in ((3, (), ()), (30, (1, 2), ()), (10, (1, 2), (3, 4, 5)), (50, (7,), (8,))):
            given = 0.0, frozenset(without), frozenset(busy)
            plain, asking = (
                CohortSampler(range(50), size, 3),
                CohortSampler(range(50), size, 3, holds=lambda each: True),
            )
            assert [plain.cohort(n, *given) for n in range(9)] == [asking.cohort(n, *given) for n in range(9)]

    def test_is_uniform_over_those_who_hold_any(self) -> None:
        sampler = CohortSampler(range(12), 2, 0, holds=lambda each: each % 3 == 0)
        counts = Counter(client for number in range(2000) for client in sampler.cohort(number))
        assert set(counts) == {0, 3, 6, 9}
        assert all(abs(count - 1000) < 110 for count in counts.values())  # standard deviation 22.4

    def test_fewer_than_a_cohort_hold_any(self) -> None:
        assert CohortSampler(range(12), 5, 0, holds=lambda each: each in (2, 7)).cohort(1) == [2, 7]

    def test_coins_are_flipped_all_the_same(self) -> None:
        plain = CohortSampler(range(100), 20, 0, by_coin_flips=True)
        asking = CohortSampler(range(100), 20, 0, by_coin_flips=True, holds=lambda each: each % 2 == 0)
        assert asking.rate == plain.rate == 0.2
        assert asking.cohort(4) == [each for each in plain.cohort(4) if each % 2 == 0]


def windows(*given: tuple[int, float, float], period: float) -> Availability:
    positions, begins, ends = zip(*given, strict=True)
    return Availability(np.array(positions), np.array(begins, float), np.array(ends, float), period)


@pytest.mark.parametrize("empty", [frozenset(), frozenset({0, 17, 29})])
@pytest.mark.parametrize("asked", [1, 5, 0.9, None])
def test_with_everybody_there_nothing_changes(asked: int | float | None, empty: frozenset[int]) -> None:
    everybody = windows(*((position, 0, 100) for position in range(30)), period=100)
    plain, traced = (CohortSampler(range(30), asked, 7, empty, each) for each in (None, everybody))
    for number in range(40):
        expected = plain.cohort(number)
        assert plain.cohort(number, 12.5 * number) == expected
        assert traced.cohort(number) == expected
        assert traced.cohort(number, 12.5 * number) == expected
        assert {type(each) for each in traced.cohort(number, 0.0)} == {int}
        assert plain.wait_seconds(12.5 * number) == traced.wait_seconds(12.5 * number) == 0


def test_draws_uniformly_from_those_who_are_there() -> None:
    ids = [f"client-{position}" for position in range(12)]
    halves = windows(*((p, 0, 50) if p % 2 else (p, 50, 100) for p in range(12)), period=100)
    sampler = CohortSampler(ids, 2, 0, frozenset({3}), halves)
    odd = Counter(client for number in range(1000) for client in sampler.cohort(number, 20))
    assert set(odd) == {ids[p] for p in (1, 5, 7, 9, 11)}
    assert all(abs(count - 400) < 80 for count in odd.values())  # standard deviation 15.5
    assert set(sampler.cohort(3, 170)) <= {ids[p] for p in range(0, 12, 2)}
    again = CohortSampler(ids, 2, 0, frozenset({3}), halves)
    assert [again.cohort(n, 7.0 * n) for n in range(30)] == [sampler.cohort(n, 7.0 * n) for n in range(30)]


def test_fewer_there_than_asked_for_is_said_once() -> None:
    sampler = CohortSampler(range(4), 3, 0, availability=windows((0, 0, 9), (1, 0, 5), (2, 0, 3), (3, 0, 9), period=10))
    assert len(sampler.cohort(1, 0)) == 3
    with pytest.warns(UserWarning, match=r"round 2: 2 clients are available for a cohort of 3; .*said once"):
        assert sampler.cohort(2, 6) == [0, 3]
    assert sampler.cohort(3, 7) == [0, 3]
    assert len(sampler.cohort(4)) == 3


def test_nobody_there_waits_for_the_next_who_holds_data() -> None:
    there = windows((0, 1, 2), (1, 4, 6), (2, 5, 6), period=10)
    sampler = CohortSampler("abc", 1, 0, frozenset({0}), there)
    assert (sampler.wait_seconds(0), sampler.cohort(1, 0)) == (4, ["b"])
    assert (sampler.wait_seconds(6), sampler.cohort(2, 6)) == (8, ["b"])
    assert {sampler.cohort(number, 5)[0] for number in range(20)} == {"b", "c"}


class TestByCoinFlips:
    """Poisson sampling, as privacy is accounted."""

    def test_each_client_by_itself(self) -> None:
        sampler = CohortSampler(range(10), 3, 0, by_coin_flips=True)
        assert sampler.rate == 0.3
        cohorts = [sampler.cohort(number) for number in range(2000)]
        limit = 4 * (0.3 * 0.7 / 2000) ** 0.5
        for client in range(10):
            assert sum(client in cohort for cohort in cohorts) / 2000 == pytest.approx(0.3, abs=limit)
        assert sum({1, 2} <= set(cohort) for cohort in cohorts) / 2000 == pytest.approx(0.09, abs=limit)
        sizes = np.array([len(cohort) for cohort in cohorts])
        assert sizes.mean() == pytest.approx(3, abs=0.15)
        assert sizes.var() == pytest.approx(10 * 0.3 * 0.7, rel=0.15)

    def test_who_sits_out_is_replaced_by_nobody(self) -> None:
        sampler = CohortSampler(range(10), 3, 0, by_coin_flips=True)
        for number in range(50):
            without = sampler.cohort(number, 0.0, frozenset({1, 2}))
            assert without == [client for client in sampler.cohort(number) if client not in (1, 2)]

    def test_a_chance_of_one_is_everybody_with_data(self) -> None:
        sampler = CohortSampler(range(5), None, 0, frozenset({3}), by_coin_flips=True)
        assert [sampler.cohort(number) for number in (1, 2)] == [[0, 1, 2, 4]] * 2

    def test_cohorts_never_change(self) -> None:
        sampler = CohortSampler(range(20), 4, 3, by_coin_flips=True)
        assert [sampler.cohort(number) for number in (1, 2, 3)] == [[5, 6, 8, 12], [7, 8, 15], [2, 4, 8, 13, 19]]
