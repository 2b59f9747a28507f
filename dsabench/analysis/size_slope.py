"""The slope of the paired difference over the logarithm of the model's size: does the gap grow with size?

d_ij = variant - baseline of seed i at size j, x_j = log10 of its active parameters, a fixed design point:

    slope    = sum_j w_j mean_i(d_ij)       w_j = (x_j - mean(x)) / sum_j (x_j - mean(x))^2
    variance = sum_j w_j^2 s_j^2 / n_j      s_j: standard deviation of size j's differences

with a t interval of Welch's and Satterthwaite's degrees of freedom. Models of different sizes are trainings of their
own, so their differences are independent, unlike those of one model at several lengths (`trends`). Each size has a
spread of its own: one spread for all covers as little as 83 % where one size is noisier. A slope for each seed is exact
too, but with 3 seeds has 2 degrees of freedom and an interval up to 1.45 times as wide. What a seed adds to its
differences at all sizes alike makes this interval wider than it need be, never narrower. That the means are off a
straight line is not part of its error: the slope is that of the line through these sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from dsabench.analysis.statistics import ALPHA

MIN_SIZES = 3
"""Two sizes have a difference, no trend."""


class SlopeOverSize(NamedTuple):
    """Change of the difference for each tenfold size."""

    slope: float
    low: float
    high: float
    """Of the interval that covers 1 - ALPHA."""
    p: float
    """Two-sided, of no slope."""
    freedom: float


def slope_over_size(sizes: Sequence[float], differences: Sequence[np.ndarray]) -> SlopeOverSize:
    """The slope of `differences`, at least two a size, over log10 of `sizes`, of which at least two differ."""
    x = np.log10(np.asarray(sizes, dtype=float))
    counts = np.array([len(d) for d in differences])
    assert len(x) == len(counts) and counts.min() > 1, counts
    w = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    slope = float(w @ np.array([d.mean() for d in differences]))
    parts = w**2 * np.array([d.var(ddof=1) for d in differences]) / counts
    variance = float(parts.sum())
    if variance == 0:
        return SlopeOverSize(slope, slope, slope, 0.0 if slope else 1.0, math.inf)
    freedom = variance**2 / float((parts**2 / (counts - 1)).sum())
    error = math.sqrt(variance)
    half = float(special.stdtrit(freedom, 1 - ALPHA / 2)) * error
    p = 2 * float(special.stdtr(freedom, -abs(slope) / error))
    return SlopeOverSize(slope, slope - half, slope + half, p, freedom)
