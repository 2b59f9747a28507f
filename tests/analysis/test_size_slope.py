"""The slope over size: its interval covers what it promises, and says no more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dsabench.analysis.size_slope import slope_over_size

SIZES = [2.76e6, 1.08e7, 3.19e7, 1.05e8, 2.93e8]


def covered(seeds: int, sd: np.ndarray, trials: int, common: float = 0.0) -> float:
    """Share of intervals that hold the true slope of 0.004 for each tenfold size."""
    generator = np.random.default_rng(seeds)
    x = np.log10(SIZES)
    d = 0.01 + 0.004 * x + sd * generator.standard_normal((trials, seeds, 5))
    d += common * generator.standard_normal((trials, seeds, 1))
    found = [slope_over_size(SIZES, list(each.T)) for each in d]
    return float(np.mean([one.low <= 0.004 <= one.high for one in found]))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [(1, 1, 1, 1, 1), (2, 1.5, 1, 0.7, 0.5), (4, 1, 1, 1, 1)])
def test_the_interval_covers_93_to_97_percent(seeds: int, spread: tuple[float, ...]) -> None:
    assert 0.93 <= covered(seeds, 0.005 * np.array(spread), trials=6000) <= 0.97


def test_what_seeds_have_in_common_only_widens_it() -> None:
    assert covered(3, np.full(5, 0.005), trials=2000, common=0.005) >= 0.95


def test_of_two_sizes_it_is_welchs_test() -> None:
    generator = np.random.default_rng(0)
    small, large = generator.normal(0, 1, 5), generator.normal(1, 3, 4)
    found = slope_over_size([1e6, 1e7], [small, large])
    welch = stats.ttest_ind(large, small, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    assert (found.slope, found.p, found.freedom) == pytest.approx((large.mean() - small.mean(), welch.pvalue, welch.df))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_equal_differences_have_no_error() -> None:
    found = slope_over_size([1e6, 1e7, 1e8], [np.full(3, value) for value in (0.0, 0.01, 0.02)])
    assert (found.slope, found.low, found.high, found.p) == pytest.approx((0.01, 0.01, 0.01, 0.0))
    assert slope_over_size([1e6, 1e7], [np.zeros(3), np.zeros(3)]).p == 1.0
