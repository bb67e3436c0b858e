"""Samples that stand for all."""

from fedhq_lightning.support.samples import sample_of


def test_a_sample_is_the_same_every_time_in_order_and_of_everywhere() -> None:
    found = sample_of(range(10**12), 1000)
    assert found == sample_of(range(10**12), 1000) == sorted(set(found))
    assert len(found) == 1000
    assert all(400 < sum(each % parts == 0 for each in found) * parts < 2200 for parts in (2, 3, 5, 10))
    assert abs(sum(found) / 1000 / 10**12 - 0.5) < 0.05  # standard deviation 0.009


def test_of_few_it_is_all() -> None:
    assert sample_of("abc", 5) == ["a", "b", "c"]
