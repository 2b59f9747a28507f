"""The scaling curve of one variant, loss = a + b (C / C0)^-c, fitted to the means over seeds of each size.

For a given c the best a and b have a closed form, so that the fit is a search over one bounded number: every c of a
grid is a start, the best is refined, and no minimum is missed (variable projection, Golub and Pereyra 1973). At a
fixed number of tokens Chinchilla's form E + A N^-alpha + B D^-beta (arXiv 2203.15556) is this one with c = alpha, where
FLOPs grow as N; where tokens grow with size it is an approximation.

Intervals: a bootstrap over seeds, within each size, of deviations from the size's mean, widened by sqrt(n / (n - 1));
percentiles at the levels of a t distribution (Hesterberg 2015, "expanded percentile"), its degrees of freedom after
Welch and Satterthwaite. Simulated with 3 and 5 seeds of 5 sizes these intervals cover 94 to 96 %. Plain percentiles of
so few seeds cover 75 to 84 % where 95 are promised.

Shapes: R replicates, J sizes, G values of c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from dsabench.analysis.statistics import ALPHA

BOUNDS = (0.01, 2.0)
"""Accepted exponents: below them the curve is a straight line over log C, above them a step."""

MIN_SIZES = 4
"""Three parameters, and one size more that can contradict them."""

REPLICATES = 2000

_GRID, _ZOOMS, _ZOOM = 120, 3, 13


@dataclass(frozen=True)
class PowerLaws:
    """Fitted curves, one for each of R replicates: loss = a + b (C / C0)^-c."""

    a_R: np.ndarray
    b_R: np.ndarray
    c_R: np.ndarray
    squares_R: np.ndarray
    """Weighted sum of squared residuals."""
    reference: float
    """C0, the geometric mean of the sizes' FLOPs, at which b is what the loss lies above a."""

    def at(self, flops: np.ndarray) -> np.ndarray:
        """Loss of each replicate at `flops`: (R, number of flops)."""
        ratio = np.log(np.asarray(flops, dtype=float) / self.reference)
        found: np.ndarray = self.a_R[:, None] + self.b_R[:, None] * np.exp(-self.c_R[:, None] * ratio)
        return found


def fit(flops_J: np.ndarray, losses_RJ: np.ndarray, weights_J: np.ndarray) -> PowerLaws:
    """The curves of least weighted squares with a >= 0, b >= 0 and c within BOUNDS."""
    reference = float(np.exp(np.log(flops_J).mean()))
    log_J = np.log(flops_J / reference)
    weights_J = weights_J / weights_J.sum()
    lowest, highest = np.log(BOUNDS)
    log_c = np.linspace(lowest, highest, _GRID)
    step = log_c[1] - log_c[0]
    found = _profile(log_J, losses_RJ, weights_J, np.broadcast_to(log_c, (1, _GRID)))
    best_R = log_c[found[2].argmin(axis=1)]
    rows = np.arange(len(losses_RJ))
    for _ in range(_ZOOMS):
        near_RG = np.clip(best_R[:, None] + step * np.linspace(-1, 1, _ZOOM), lowest, highest)
        found = _profile(log_J, losses_RJ, weights_J, near_RG)
        place_R = found[2].argmin(axis=1)
        best_R = near_RG[rows, place_R]
        step *= 2 / (_ZOOM - 1)
    a_R, b_R, squares_R = (each[rows, place_R] for each in found)
    return PowerLaws(a_R, b_R, np.exp(best_R), squares_R, reference)


def _profile(
    log_J: np.ndarray, losses_RJ: np.ndarray, weights_J: np.ndarray, log_c_RG: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best a, b and their weighted sum of squares for each replicate and c, each (R, G)."""
    x_RGJ = np.exp(-np.exp(log_c_RG)[..., None] * log_J)
    wx_RGJ = x_RGJ * weights_J
    x_RG, xx_RG = wx_RGJ.sum(axis=-1), (wx_RGJ * x_RGJ).sum(axis=-1)
    y_R1 = (losses_RJ @ weights_J)[:, None]
    yy_R1 = ((losses_RJ - y_R1) ** 2 @ weights_J)[:, None]
    centred_RJ = losses_RJ - y_R1  # sums of squares of small differences
    xy_RG = centred_RJ @ wx_RGJ[0].T if len(wx_RGJ) == 1 else np.einsum("rgj,rj->rg", wx_RGJ, centred_RJ)
    variance_RG = xx_RG - x_RG**2
    b_RG = np.maximum(xy_RG / variance_RG, 0.0)
    a_RG = y_R1 - b_RG * x_RG
    # Where a would be negative it is 0, and b that of a curve through 0.
    through_0 = (xy_RG + y_R1 * x_RG) / xx_RG
    negative = a_RG < 0
    b_RG, a_RG = np.where(negative, through_0, b_RG), np.where(negative, 0.0, a_RG)
    offset_RG = a_RG + b_RG * x_RG - y_R1
    squares_RG = yy_R1 - 2 * b_RG * xy_RG + b_RG**2 * variance_RG + offset_RG**2
    return a_RG, b_RG, squares_RG


def resampled(losses: Sequence[np.ndarray], seed: int = 0, replicates: int = REPLICATES) -> np.ndarray:
    """Means over seeds of bootstrap replicates, (R, J); `losses`: those of each size's seeds.

    Seeds are drawn within each size. Two variants of the same seeds get the same draws: pairs stay pairs.
    """
    generator = np.random.default_rng(seed)
    means = []
    for of_size in losses:
        n, mean = len(of_size), float(of_size.mean())
        widened = (of_size - mean) * math.sqrt(n / (n - 1))
        means.append(mean + widened[generator.integers(0, n, (replicates, n))].mean(axis=1))
    return np.stack(means, axis=1)


def interval(values_R: np.ndarray, means_RJ: np.ndarray, counts_J: np.ndarray) -> tuple[float, float]:
    """The expanded percentile interval for 1 - ALPHA of what was computed from each replicate's means.

    Degrees of freedom after Welch and Satterthwaite, (sum v_j)^2 / sum(v_j^2 / (n_j - 1)), v_j: the variance that size
    j brings in, from the least-squares plane of the values over the means.
    """
    centred_RJ = means_RJ - means_RJ.mean(axis=0)
    slopes_J = np.linalg.lstsq(centred_RJ, values_R - values_R.mean(), rcond=None)[0]
    parts_J = slopes_J**2 * centred_RJ.var(axis=0)
    freedom = float(parts_J.sum() ** 2 / (parts_J**2 / (counts_J - 1)).sum()) if parts_J.any() else math.inf
    tail = float(special.ndtr(special.stdtrit(freedom, ALPHA / 2)))
    low, high = np.quantile(values_R, (tail, 1 - tail))
    return float(low), float(high)


def lack_of_fit(losses: Sequence[np.ndarray], fitted_J: np.ndarray) -> float:
    """p of the F test that the means over seeds lie on the curve, against the spread of the seeds themselves.

    F = [sum n (mean - fitted)^2 / (J - 3)] / [sum (loss - mean)^2 / sum(n - 1)].
    """
    counts = np.array([len(of_size) for of_size in losses])
    means = np.array([of_size.mean() for of_size in losses])
    within = sum(float(((of_size - of_size.mean()) ** 2).sum()) for of_size in losses)
    free, pure = len(counts) - 3, int((counts - 1).sum())
    if free < 1 or pure < 1 or within == 0:
        return math.nan
    ratio = float((counts * (means - fitted_J) ** 2).sum()) / free / (within / pure)
    return float(special.fdtrc(free, pure, ratio))
