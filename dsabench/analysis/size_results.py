"""The part of a comparison that is about models of several sizes, as data."""

from __future__ import annotations

from dsabench.analysis.comparison_row import Estimate, Number, Result


class SizePoint(Result):
    """A variant and its baseline at one size."""

    setting: str
    """The setting of this size."""

    size: int
    """Active parameters of the baseline: an expert that a token is not routed to does not count, the tied embedding
    counts once."""

    tokens: Number
    """Training tokens of the variant's run."""

    baseline_flops: Number
    """Model FLOPs of the baseline's run."""

    flops: Number
    """Those of the variant's."""

    baseline_mean: Number
    """Mean of the metric over the pairs' baseline runs."""

    mean: Number
    """The same of the variant's."""

    difference: Estimate
    """Of the metric, variant minus baseline of the same seed."""

    same_flops: Estimate
    """Loss minus that of the baseline at the variant's FLOPs, by interpolation between its sizes along its fitted
    curve; over seeds. Of no pairs where those FLOPs are not between the baseline's, or the metric is no loss."""

    same_flops_size: Number
    """Active parameters of the baseline that costs these FLOPs, by interpolation."""


class SizeSlope(Result):
    """How the difference changes when the size grows tenfold."""

    sizes: int
    """Sizes that have enough pairs."""

    slope: Number
    """Least-squares slope of the mean difference over log10 of the active parameters."""

    low: Number
    """Lower end of its 95 % interval."""

    high: Number
    """Upper end."""

    p: Number
    """Two-sided t test of no slope."""

    freedom: Number
    """Degrees of freedom (Welch and Satterthwaite); null where all differences of a size are the same."""


class ScalingCurve(Result):
    """loss = a + b (C / C0)^-c, fitted to the means of the sizes; C: FLOPs of a run."""

    variant: str
    """The variant, or the baseline."""

    reference: Number
    """C0, the geometric mean of the FLOPs."""

    a: Number
    """Loss that no amount of FLOPs goes below, along this ladder of sizes."""

    a_low: Number
    """Lower end of its 95 % interval, a bootstrap over seeds."""

    a_high: Number
    """Upper end."""

    b: Number
    """Loss above `a` at C0."""

    c: Number
    """Exponent."""

    c_low: Number
    """Lower end of its interval."""

    c_high: Number
    """Upper end."""

    largest_miss: Number
    """Largest distance of a mean from the curve."""

    p_misfit: Number
    """F test that the means lie on such a curve, against the spread of the seeds."""

    failed: bool
    """Whether no such curve fits: a, b and c then mean nothing."""

    doubt: str
    """Why its numbers say little; empty when nothing speaks against them."""


class SizeLadder(Result):
    """A variant against the baseline over models of several sizes, at one length."""

    length: int
    """Tokens in a window."""

    variant: str
    """The variant, without the fields of its setting."""

    points: list[SizePoint]
    """The sizes, smallest first."""

    slope: SizeSlope | None
    """Null where fewer than 3 sizes have 3 pairs."""

    curves: list[ScalingCurve]
    """Of the baseline, then of the variant; none where fewer than 4 sizes have 3 pairs, or the metric is no loss."""
