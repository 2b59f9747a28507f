"""The statistics agree with scipy and statsmodels, cover what they promise, and claim nothing from too little."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import Parity
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from dsabench.analysis import statistics

INTERVAL = Parity("paired t interval", "`scipy` ttest_1samp", 1e-12)
P_VALUES = Parity("p of a difference, and of not worse", "`scipy` ttest_1samp", 1e-9)
EQUIVALENCE = Parity("p of equivalence (TOST)", "`statsmodels` ttost_paired", 1e-6)
HOLM = Parity("Holm's correction", "`statsmodels` multipletests", 1e-12)

differences = st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=12).filter(
    lambda d: np.std(d) > 1e-9
)


@settings(deadline=None)
@given(differences, st.floats(0.001, 1))
def test_interval_and_tests_equal_scipy(d: list[float], margin: float) -> None:
    found, reference = statistics.paired(d), stats.ttest_1samp(d, 0.0)
    interval = reference.confidence_interval(0.95)
    assert (found.n, found.mean) == (len(d), pytest.approx(np.mean(d)))
    INTERVAL.check((found.low, found.high), (interval.low, interval.high))
    P_VALUES.check(statistics.p_different(d), reference.pvalue)
    P_VALUES.check(statistics.p_below(d, margin), stats.ttest_1samp(d, margin, alternative="less").pvalue)


@settings(deadline=None)
@given(differences, st.floats(0.001, 1))
def test_equivalence_equals_statsmodels(d: list[float], margin: float) -> None:
    ours = np.asarray(d) + 4.0
    p, _, _ = ttost_paired(ours, np.full(len(d), 4.0), -margin, margin)
    EQUIVALENCE.check(statistics.p_equivalent(d, margin), p)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_equals_statsmodels(p: list[float]) -> None:
    with mock.patch("gc.collect"):  # which multipletests calls twice, and is slow beside PyTorch
        expected = multipletests(p, method="holm")[1]
    HOLM.check(statistics.holm(p), expected)


def test_holm_leaves_out_what_is_no_test() -> None:
    adjusted = statistics.holm([0.01, math.nan, 0.04])
    assert (adjusted[0], adjusted[2]) == pytest.approx((0.02, 0.04))
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_95_percent_with_few_seeds(n: int) -> None:
    samples = np.random.default_rng(n).normal(0.01, 0.01, (4000, n))
    intervals = [statistics.paired(d) for d in samples]
    covered = np.mean([found.low <= 0.01 <= found.high for found in intervals])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("n", [3, 5])
def test_false_claims_are_as_rare_as_promised(n: int) -> None:
    """At no difference: better or worse in 5 %. At a difference of the margin: not worse in 5 %."""
    generator, margin = np.random.default_rng(10 + n), 0.02
    none = [(d, statistics.p_different(d)) for d in generator.normal(0, 0.01, (3000, n))]
    assert np.mean([statistics.verdict(d, None, p) in ("better", "worse") for d, p in none]) == pytest.approx(
        0.05, abs=0.015
    )
    at_margin = [(d, statistics.p_different(d)) for d in generator.normal(margin, 0.01, (3000, n))]
    claimed = [statistics.verdict(d, margin, p) in ("not worse", "better") for d, p in at_margin]
    assert np.mean(claimed) == pytest.approx(0.05, abs=0.015)


def test_the_power_that_the_design_promises() -> None:
    """Paired SD 0.01, true difference 0.005, margin 0.02: about 0.5 with 3 seeds and 0.86 with 5."""
    generator = np.random.default_rng(0)
    for n, power in ((3, 0.53), (5, 0.86)):
        samples = generator.normal(0.005, 0.01, (3000, n))
        assert np.mean([statistics.p_below(d, 0.02) < 0.05 for d in samples]) == pytest.approx(power, abs=0.03)


@settings(deadline=None)
@given(differences, st.one_of(st.none(), st.floats(0.001, 0.5)), st.floats(0, 1))
def test_a_verdict_never_says_more_than_its_test(d: list[float], margin: float | None, p: float) -> None:
    found, mean = statistics.verdict(d, margin, p), np.mean(d)
    if len(d) < 3:
        assert found == "inconclusive"
    elif found == "better":
        assert p < 0.05
        assert mean < 0
    elif found == "worse":
        assert p < 0.05
        assert mean > 0
    elif found == "not worse":
        assert margin is not None
        assert mean < margin
        assert stats.ttest_1samp(d, margin, alternative="less").pvalue < 0.05


def test_verdicts_of_plain_cases() -> None:
    near = [0.001, -0.002, 0.0, 0.001, -0.001]
    assert statistics.verdict(near, 0.02, statistics.p_different(near)) == "not worse"
    assert statistics.verdict(near, None, statistics.p_different(near)) == "inconclusive"
    assert statistics.verdict(near[:2], 0.02, 0.0) == "inconclusive"
    high = [0.1, 0.11, 0.09]
    assert statistics.verdict(high, 0.02, statistics.p_different(high)) == "worse"
    assert statistics.verdict([-x for x in high], 0.02, statistics.p_different(high)) == "better"
    wide = [0.2, -0.15, 0.01]
    assert statistics.verdict(wide, 0.02, statistics.p_different(wide)) == "inconclusive"
    same = [0.0, 0.0, 0.0]  # k >= L: the very same bits
    assert statistics.verdict(same, 0.02, statistics.p_different(same)) == "not worse"


@settings(deadline=None, max_examples=50)
@given(differences, st.one_of(st.none(), st.floats(0.01, 0.5)))
def test_the_seeds_needed_are_the_first_with_the_power(d: list[float], margin: float | None) -> None:
    n = statistics.seeds_needed(d, margin)
    mean, sd = float(np.mean(d)), float(np.std(d, ddof=1))
    towards = margin is not None and mean < margin
    effect, level = (margin - mean, 0.05) if margin is not None and towards else (abs(mean), 0.025)

    def power(n: int) -> float:
        return float(stats.nct.sf(stats.t.ppf(1 - level, n - 1), n - 1, effect / (sd / math.sqrt(n))))

    if n is None:
        assert power(statistics.MOST_SEEDS) < 0.81
    else:
        assert power(n) >= 0.799
        assert n == max(3, len(d) + 1) or power(n - 1) <= 0.801


def test_slopes_are_least_squares() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))
    x = np.log2([64, 128, 512])
    expected = [np.polyfit(x, row, 1)[0] for row in values]
    assert statistics.slopes(x, values) == pytest.approx(expected)
