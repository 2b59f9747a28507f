"""The scaling curve: the least squares that scipy finds, intervals that cover what they promise, failures that are
said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from dsabench.analysis import scaling_fit
from dsabench.analysis.scaling_fit import BOUNDS, fit, interval, lack_of_fit, resampled

FLOPS = np.geomspace(8e14, 7e16, 5)
LOG = np.log(FLOPS / np.exp(np.log(FLOPS).mean()))


def curve(a: float, b: float, c: float) -> np.ndarray:
    return a + b * np.exp(-c * LOG)


@pytest.mark.parametrize(("a", "b", "c"), [(1.7, 0.5, 0.3), (0.4, 2.0, 0.08), (3.0, 0.2, 1.1)])
def test_exact_points_give_their_curve_back(a: float, b: float, c: float) -> None:
    found = fit(FLOPS, curve(a, b, c)[None], np.full(5, 3))
    assert (found.a_R[0], found.b_R[0], found.c_R[0]) == pytest.approx((a, b, c), rel=0.01)
    between = np.array([2e15, 3e16])
    ratio = between / found.reference
    assert found.at(between)[0] == pytest.approx(a + b * ratio**-c, abs=1e-4)


def test_no_start_of_scipy_finds_fewer_squares() -> None:
    generator = np.random.default_rng(5)
    weights = np.array([5, 5, 3, 3, 3])
    for _ in range(20):
        a, b, c = generator.uniform(0, 3), generator.uniform(0.05, 1), generator.uniform(0.03, 1)
        losses = curve(a, b, c) + 0.01 * generator.standard_normal(5)
        ours = fit(FLOPS, losses[None], weights)

        def off(p: np.ndarray, losses: np.ndarray = losses) -> np.ndarray:
            return np.sqrt(weights / weights.sum()) * (curve(*p) - losses)

        low, high = (0, 0, BOUNDS[0]), (np.inf, np.inf, BOUNDS[1])
        starts = [(losses.min() * share, 0.3, c0) for share in (0.0, 0.5, 0.9) for c0 in (0.03, 0.2, 1.0)]
        best = min(2 * optimize.least_squares(off, start, bounds=(low, high), xtol=1e-14).cost for start in starts)
        assert float(np.sum(off(np.array([ours.a_R[0], ours.b_R[0], ours.c_R[0]])) ** 2)) <= best * 1.001 + 1e-9
        assert ours.squares_R[0] <= best * 1.001 + 1e-9


def covered(seeds: int, trials: int, replicates: int, sd: np.ndarray, seed: int = 7) -> dict[str, float]:
    """The share of trials whose interval holds the true a, c, and the loss between two sizes."""
    a, b, c = 1.7, 0.5, 0.3
    generator = np.random.default_rng(seed)
    between = float(np.sqrt(FLOPS[1] * FLOPS[2]))
    at = a + b * (between / np.exp(np.log(FLOPS).mean())) ** -c
    hits = dict.fromkeys(("a", "c", "between"), 0)
    counts = np.full(5, seeds)
    for trial in range(trials):
        losses = curve(a, b, c) + sd * generator.standard_normal((seeds, 5))
        means = resampled(list(losses.T), seed=trial, replicates=replicates)
        found = fit(FLOPS, means, counts)
        for name, values, true in (
            ("a", found.a_R, a),
            ("c", found.c_R, c),
            ("between", found.at(np.array([between]))[:, 0], at),
        ):
            low, high = interval(values, means, counts)
            hits[name] += low <= true <= high
    return {name: n / trials for name, n in hits.items()}


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_known_exponents_cover_95_percent(seeds: int) -> None:
    """250 trials: a binomial standard deviation of 1.4 %, so that 91 to 99 % is what 95 looks like. By hand, 4000
    trials: 94 to 96 %."""
    for share in covered(seeds, trials=250, replicates=500, sd=np.full(5, 0.01)).values():
        assert 0.91 <= share <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", ["equal", "unequal"])
def test_intervals_cover_93_to_97_percent(seeds: int, spread: str) -> None:
    sd = 0.006 * (np.ones(5) if spread == "equal" else np.array([2.0, 1.5, 1.0, 0.7, 0.5]))
    for share in covered(seeds, trials=3000, replicates=1000, sd=sd).values():
        assert 0.93 <= share <= 0.97


def test_the_same_seeds_are_drawn_for_two_variants() -> None:
    generator = np.random.default_rng(1)
    dense = [generator.standard_normal(3) for _ in range(5)]
    d = resampled([losses + 0.25 for losses in dense]) - resampled(dense)
    assert d == pytest.approx(0.25)


def test_replicates_have_the_standard_error_of_the_mean() -> None:
    losses = np.array([1.0, 2.0, 4.0])
    means = resampled([losses], replicates=200_000)[:, 0]
    assert means.std() == pytest.approx(stats.sem(losses), rel=0.01)


def test_lack_of_fit_is_the_textbooks_f_test() -> None:
    """Uniform p on a true curve; small where a mean is off it."""
    generator = np.random.default_rng(2)
    ps = []
    for _ in range(300):
        losses = curve(1.7, 0.5, 0.3) + 0.01 * generator.standard_normal((3, 5))
        found = fit(FLOPS, losses.mean(axis=0)[None], np.full(5, 3))
        ps.append(lack_of_fit(list(losses.T), found.at(FLOPS)[0]))
    assert stats.kstest(ps, "uniform").pvalue > 0.01
    bent = curve(1.7, 0.5, 0.3) + np.array([0, 0, 0.05, 0, 0]) + 0.003 * generator.standard_normal((3, 5))
    assert lack_of_fit(list(bent.T), fit(FLOPS, bent.mean(axis=0)[None], np.full(5, 3)).at(FLOPS)[0]) < 0.01


def test_bounds_hold() -> None:
    rising, straight = 2 + 0.1 * LOG, 2 - 0.1 * LOG
    found = fit(FLOPS, np.stack([rising, straight, straight - 1.9]), np.full(5, 3))
    assert found.b_R[0] == 0
    assert BOUNDS[0] <= found.c_R.min() and found.c_R.max() <= BOUNDS[1]
    assert found.a_R.min() >= 0
    assert scaling_fit.MIN_SIZES == 4
