"""Models of several sizes compared: the slope of the difference, fitted curves, and equal FLOPs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dsabench.analysis import scaling_fit
from dsabench.analysis.comparison_row import Estimate
from dsabench.analysis.size_results import ScalingCurve, SizeLadder, SizePoint, SizeSlope
from dsabench.analysis.size_slope import MIN_SIZES, slope_over_size
from dsabench.analysis.statistics import MIN_PAIRS
from dsabench.analysis.variants import variant_order, within

ACTIVE = "active_params"
"""The column of `active_parameters`."""

_MODEL = ("n_layers", "d_model", "d_ff", "n_experts", "experts_per_token")

_WIDE = 3.0
"""An exponent whose interval's ends differ by more than this factor is not told from a."""


def active_parameters(runs: pd.DataFrame) -> pd.Series[float]:
    """Parameters that a token meets, an indexer's apart: params - indexer_params - 3 n d F (E - K).

    n layers of E experts, K of them for each token, each with three matrices of d F. NaN where a record lacks one.
    """
    wanted = [f"model.{name}" for name in _MODEL]
    numbers = runs.reindex(columns=["params", "indexer_params", *wanted]).apply(pd.to_numeric, errors="coerce")
    numbers = numbers.astype("Float64").astype("float64")
    layers, width, hidden, experts, chosen = (numbers[name] for name in wanted)
    active: pd.Series[float] = (
        numbers["params"] - numbers["indexer_params"] - 3 * layers * width * hidden * (experts - chosen)
    )
    return active.where((active > 0) & (active < math.inf))


class _Size(NamedTuple):
    """The pairs of one size, by seed."""

    setting: str
    size: float
    tokens: float
    base_flops: float
    flops: float
    base: np.ndarray
    """The baseline's values of the metric, one a seed."""
    ours: np.ndarray
    seeds: tuple[int, ...]


def size_ladders(pairs: pd.DataFrame, metric: str) -> Iterator[SizeLadder]:
    """One for each length and variant whose settings are at least MIN_SIZES sizes of one model; `pairs` are those that
    are judged. None where two settings have the same size, or sizes were evaluated on different text."""
    if pairs.empty:
        return
    names = [within(variant, setting) for variant, setting in zip(pairs["variant"], pairs["setting"], strict=True)]
    kinds = sorted(set(zip(pairs["length"].astype(int), names, strict=True)), key=lambda k: (k[0], variant_order(k[1])))
    for length, name in kinds:
        group = pairs[(pairs["length"] == length) & (np.array(names) == name)]
        sizes = _sizes(group, metric)
        if len({size.size for size in sizes}) == len(sizes) >= MIN_SIZES and _same_text(group):
            yield _ladder(length, name, sizes, is_loss=metric == "val_loss")


def _same_text(group: pd.DataFrame) -> bool:
    """Whether all were evaluated on the same text: the same number of ids, and the same unigram baseline."""
    known = group[["b.vocab_size", "b.unigram_loss"]].astype(float)
    spread = (known.max() - known.min()).fillna(0.0)
    return bool(spread["b.vocab_size"] == 0 and spread["b.unigram_loss"] < 1e-3)


def _sizes(group: pd.DataFrame, metric: str) -> list[_Size]:
    found = []
    for setting, of_setting in group.groupby("setting"):
        sized = of_setting[of_setting[f"b.{ACTIVE}"].notna()].sort_values("seed")
        if len(sized) == len(of_setting):
            columns = (f"b.{ACTIVE}", "a.tokens", "b.flops", "a.flops")
            size, tokens, base_flops, flops = (float(sized[name].astype(float).mean()) for name in columns)
            base, ours = (sized[f"{side}.{metric}"].to_numpy(float) for side in "ba")
            found.append(_Size(str(setting), size, tokens, base_flops, flops, base, ours, tuple(sized["seed"])))
    return sorted(found, key=lambda size: size.size)


def _ladder(length: int, name: str, sizes: list[_Size], is_loss: bool) -> SizeLadder:
    enough = [size for size in sizes if len(size.seeds) >= MIN_PAIRS]
    curves: list[ScalingCurve] = []
    line = None
    if is_loss and len(enough) >= scaling_fit.MIN_SIZES:
        base_flops, flops = np.array([[size.base_flops, size.flops] for size in enough]).T
        if all(np.isfinite(each).all() and (np.diff(each) > 0).all() for each in (base_flops, flops)):
            theirs, line = _curve("", base_flops, [size.base for size in enough])
            ours, _ = _curve(name, flops, [size.ours for size in enough])
            curves = [theirs, ours]
            line = None if theirs.failed else line
    return SizeLadder(
        length=length,
        variant=name,
        points=[_point(size, sizes, line, is_loss) for size in sizes],
        slope=_slope(enough) if len(enough) >= MIN_SIZES else None,
        curves=curves,
    )


def _slope(sizes: Sequence[_Size]) -> SizeSlope:
    found = slope_over_size([size.size for size in sizes], [size.ours - size.base for size in sizes])
    return SizeSlope(sizes=len(sizes), **found._asdict())


def _curve(name: str, flops: np.ndarray, losses: Sequence[np.ndarray]) -> tuple[ScalingCurve, scaling_fit.PowerLaws]:
    """The curve of one variant with its intervals, and the fitted line alone."""
    counts = np.array([len(of_size) for of_size in losses])
    line = scaling_fit.fit(flops, np.array([[of_size.mean() for of_size in losses]]), counts)
    means = scaling_fit.resampled(losses)
    replicates = scaling_fit.fit(flops, means, counts)
    (a_low, a_high), (c_low, c_high) = (
        scaling_fit.interval(values, means, counts) for values in (replicates.a_R, replicates.c_R)
    )
    fitted = line.at(flops)[0]
    found = ScalingCurve(
        variant=name,
        reference=line.reference,
        a=float(line.a_R[0]),
        a_low=a_low,
        a_high=a_high,
        b=float(line.b_R[0]),
        c=float(line.c_R[0]),
        c_low=c_low,
        c_high=c_high,
        largest_miss=float(max(abs(of_size.mean() - at) for of_size, at in zip(losses, fitted, strict=True))),
        p_misfit=scaling_fit.lack_of_fit(losses, fitted),
        failed=False,
        doubt="",
    )
    failure = _failure(found)
    doubt = failure or _doubt(found, len(losses))
    return found.model_copy(update={"failed": bool(failure), "doubt": doubt}), line


def _failure(curve: ScalingCurve) -> str:
    """Why no such curve fits; empty where one does."""
    low, high = scaling_fit.BOUNDS
    if curve.b == 0:
        return "the fit failed: the loss does not fall with FLOPs"
    if curve.c < 1.01 * low or curve.c > 0.99 * high:
        shape = "a straight line over log FLOPs" if curve.c < 1 else "flat above the smallest sizes"
        return f"the fit failed: no exponent within {low:g} to {high:g} is best; the losses are {shape}"
    return ""


def _doubt(curve: ScalingCurve, sizes: int) -> str:
    """Why the numbers of a curve that fits say little."""
    low, high = scaling_fit.BOUNDS
    if curve.c_low < 1.01 * low or curve.c_high > 0.99 * high or curve.c_high > _WIDE * curve.c_low:
        return (
            f"{sizes} sizes do not tell a from c: anything from c = {curve.c_low:.2g} with a = {curve.a_low:.2f} to "
            f"c = {curve.c_high:.2g} with a = {curve.a_high:.2f} fits about as well"
        )
    return ""


def _point(size: _Size, sizes: Sequence[_Size], line: scaling_fit.PowerLaws | None, is_loss: bool) -> SizePoint:
    d, at = (_at_same_flops(size, sizes, line) if is_loss else None) or (np.array([]), math.nan)
    return SizePoint(
        setting=size.setting,
        size=round(size.size),
        tokens=size.tokens,
        baseline_flops=size.base_flops,
        flops=size.flops,
        baseline_mean=float(size.base.mean()),
        mean=float(size.ours.mean()),
        difference=Estimate.of(size.ours - size.base),
        same_flops=Estimate.of(d),
        same_flops_size=at,
    )


def _at_same_flops(
    size: _Size, sizes: Sequence[_Size], line: scaling_fit.PowerLaws | None
) -> tuple[np.ndarray, float] | None:
    """(our loss minus the baseline's at our FLOPs, one a seed; the baseline's size there); None outside its sizes.

    Between two sizes of the baseline each seed's distance from the fitted curve goes straight over log FLOPs: exact at
    the sizes, with the curve's bend between them. Without a curve the losses themselves go straight.
    """
    known = [other for other in sizes if math.isfinite(other.base_flops)]
    for small, large in itertools.pairwise(known):
        if not small.base_flops <= size.flops <= large.base_flops:
            continue
        share = math.log(size.flops / small.base_flops) / math.log(large.base_flops / small.base_flops)
        bend = 0.0
        if line is not None:
            left, here, right = line.at(np.array([small.base_flops, size.flops, large.base_flops]))[0]
            bend = here - (1 - share) * left - share * right
        seeds = [seed for seed in size.seeds if seed in small.seeds and seed in large.seeds]
        ours, left_seeds, right_seeds = (
            one[[each.seeds.index(seed) for seed in seeds]]
            for one, each in ((size.ours, size), (small.base, small), (large.base, large))
        )
        at = math.exp((1 - share) * math.log(small.size) + share * math.log(large.size))
        return ours - (1 - share) * left_seeds - share * right_seeds - bend, at
    return None
