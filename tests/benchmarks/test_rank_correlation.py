"""Spearman's rho over groups."""

import numpy as np
import pytest
from rank_correlation import mean_rho, shown, spearman, vector
from scipy.stats import spearmanr


def test_spearman_is_scipys_row_by_row_with_ties() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 6, (8, 20)).astype(float), generator.normal(size=(8, 20))
    expected = [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman(x, y), expected, atol=1e-12)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))


def test_groups_are_ranked_apart_and_averaged() -> None:
    """Pooled, the second group's level would turn the sign."""
    x, generator = np.arange(20.0), np.random.default_rng(1)
    groups = [(x, -x), (x + 100, 1000 - x + generator.normal(size=20) / 100)]
    assert mean_rho(groups, 200)[0] == pytest.approx(-1.0)
    noisy = [(x, generator.normal(size=20)) for _ in range(3)]
    mean, low, high = mean_rho(noisy, 500)
    assert mean == pytest.approx(np.mean([spearmanr(*each).statistic for each in noisy]))
    assert low < mean < high
    assert 0.2 < high - low < 1.2


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(2), 0
    for _ in range(100):
        _, low, high = mean_rho([(generator.normal(size=20), generator.normal(size=20)) for _ in range(2)], 200)
        covered += low <= 0 <= high
    assert 85 <= covered <= 100


def test_undefined_values_are_left_out() -> None:
    x = np.arange(6.0)
    constant = (np.ones(6), x)
    assert mean_rho([constant, (vector([0.0, 1.0, None, 3.0, 4.0, 5.0]), np.array([0, 1, -9, 3, 4, 5.0]))], 50)[0] == 1
    assert shown(mean_rho([constant], 50)) == "-"
    assert shown(np.array([0.5, -0.25, 0.75])) == "+0.50 [-0.25, +0.75]"
