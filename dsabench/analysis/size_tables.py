"""Models of several sizes in tables and words: the gap against size, fitted curves, and equal FLOPs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from dsabench.analysis.comparison import Comparison
from dsabench.analysis.grid import Grid
from dsabench.analysis.size_results import ScalingCurve, SizeLadder
from dsabench.analysis.statistics import MIN_PAIRS
from dsabench.analysis.variants import display_name
from dsabench.analysis.wording import digits_of, half_width, interval, number, p_value
from dsabench.metrics import METRICS

_POWERS = ((1e9, "B"), (1e6, "M"), (1e3, "K"))


def size_name(parameters: float) -> str:
    """`2.8M`, `292M`: parameters in three digits."""
    if not math.isfinite(parameters):
        return "-"
    power, letter = next(((power, letter) for power, letter in _POWERS if parameters >= power), (1.0, ""))
    scaled = parameters / power
    return f"{scaled:.0f}{letter}" if scaled >= 100 or not letter else f"{scaled:.2g}{letter}"


def size_grids(found: Comparison) -> Iterator[tuple[Grid, list[str]]]:
    """The tables about sizes, each with the sentences below it; none where the settings are not sizes."""
    if not found.sizes:
        return
    lengths = {ladder.length for ladder in found.sizes}
    for length in sorted(lengths):
        ladders = [ladder for ladder in found.sizes if ladder.length == length]
        at = f", {length} tokens" if len(lengths) > 1 else ""
        yield _points(ladders, found, at), [*slope_lines(ladders, found), *equal_lines(ladders, found)]
        if any(ladder.curves for ladder in ladders):
            yield _curves(ladders, found, at), list(doubt_lines(ladders, found))


def _points(ladders: list[SizeLadder], found: Comparison, at: str) -> Grid:
    digits = digits_of(found.metric)
    base = display_name(found.baseline)
    rows = [
        (
            "" if i else size_name(point.size),
            display_name(ladder.variant),
            f"{point.flops:.1e}".replace("e+", "e"),
            number(point.flops / point.baseline_flops, ".2f"),
            interval(point.difference, digits),
            half_width(point.same_flops),
            size_name(point.same_flops_size),
        )
        for place in range(max(len(ladder.points) for ladder in ladders))
        for i, (ladder, point) in enumerate(
            (ladder, ladder.points[place]) for ladder in ladders if place < len(ladder.points)
        )
    ]
    title = f"Models of several sizes (active parameters){at}"
    headings = ("size", "variant", "FLOPs", "FLOPs\nx", "difference [95 % CI]", "at equal\nFLOPs", f"{base}'s\nsize")
    return Grid(title, headings, rows, ("variant",))


def _curves(ladders: list[SizeLadder], found: Comparison, at: str) -> Grid:
    rows = [
        (
            _curve_name(curve, found),
            *(
                ("failed", "-", "-", "-", "-")
                if curve.failed
                else (
                    _with_ends(curve.a, curve.a_low, curve.a_high),
                    f"{curve.b:.3f}",
                    _with_ends(curve.c, curve.c_low, curve.c_high),
                    f"{curve.largest_miss:.3f}",
                    p_value(curve.p_misfit),
                )
            ),
        )
        for curve in _once(ladders)
    ]
    c0 = next(curve.reference for curve in _once(ladders))
    title = f"Curves: loss = a + b (C / C0)^-c{at}; C: FLOPs of a run, C0 = {c0:.1e}".replace("e+", "e")
    return Grid(title, ("variant", "a [95 % CI]", "b", "c [95 % CI]", "off by", "p of\nmisfit"), rows, ("variant",))


def slope_lines(ladders: Iterable[SizeLadder], found: Comparison) -> Iterator[str]:
    """Whether the gap of each variant grows with size, as far as its interval says so."""
    digits = digits_of(found.metric) + 1
    for ladder in ladders:
        name = display_name(ladder.variant)
        if (slope := ladder.slope) is None:
            yield f"{name}: a slope over size needs {MIN_PAIRS} seeds at each of 3 sizes."
            continue
        numbers = f"{slope.slope:+.{digits}f} [{slope.low:+.{digits}f}, {slope.high:+.{digits}f}]"
        sizes = [point.size for point in ladder.points if point.difference.n >= MIN_PAIRS]
        ends = f"{slope.sizes} sizes, {size_name(sizes[0])} to {size_name(sizes[-1])}"
        yield (
            f"Does the gap grow with size? {name}: {_answer(slope.low, slope.high, found)} A tenfold size ({ends}) "
            f"changes the difference by {numbers} {found.unit}, p = {p_value(slope.p)}."
        )


def _answer(low: float, high: float, found: Comparison) -> str:
    base = display_name(found.baseline)
    if low <= 0 <= high:
        return "not settled, the interval of the slope holds 0."
    if (low > 0) == found.lower_is_better:
        return f"yes, the larger the worse beside {base}."
    return f"no, the larger the better beside {base}."


def equal_lines(ladders: Iterable[SizeLadder], found: Comparison) -> Iterator[str]:
    """What a variant is worth at equal FLOPs, where it is the larger model and where the smaller one."""
    base = display_name(found.baseline)
    for ladder in ladders:
        points = [point for point in ladder.points if point.same_flops.n]
        groups = {
            "a larger": [point for point in points if point.size > point.same_flops_size],
            "a smaller": [point for point in points if point.size <= point.same_flops_size],
        }
        for which, mine in groups.items():
            if not mine:
                continue
            known = [point.same_flops for point in mine if math.isfinite(point.same_flops.low)]
            better, worse = sum(one.high < 0 for one in known), sum(one.low > 0 for one in known)
            yield (
                f"At equal FLOPs {which} {display_name(ladder.variant)} against {base}: better at {better}, worse at "
                f"{worse}, open at {len(mine) - better - worse} of {len(mine)} sizes (difference "
                f"{min(point.same_flops.mean for point in mine):+.3f} to "
                f"{max(point.same_flops.mean for point in mine):+.3f})."
            )


def doubt_lines(ladders: list[SizeLadder], found: Comparison) -> Iterator[str]:
    """Of each curve why its numbers say little, and where the means are not on such a curve."""
    for curve in _once(ladders):
        name = _curve_name(curve, found)
        if curve.doubt:
            yield f"{name}: {curve.doubt}."
        elif curve.p_misfit < found.alpha:
            yield f"{name}: the means are off such a curve by more than seeds differ (up to {curve.largest_miss:.3f})."


def size_meaning(found: Comparison) -> Iterator[str]:
    """The columns of these tables, for below them."""
    if not found.sizes:
        return
    base = display_name(found.baseline)
    yield (
        "size: parameters that a token meets, an indexer's apart; the embedding, which is the output layer too, counts "
        "once. FLOPs: of a whole run, and over those of the same size's baseline."
    )
    tokens = [point.tokens for ladder in found.sizes for point in ladder.points]
    low, high = min(tokens), max(tokens)
    several = f"{size_name(low)} to {size_name(high)}" if high > 1.05 * low else f"{size_name(high)} at every size"
    shares = [point.tokens / point.size for ladder in found.sizes for point in ladder.points]
    yield f"Training tokens: {several}, {min(shares):.2g} to {max(shares):.2g} for each active parameter."
    if any(point.same_flops.n for ladder in found.sizes for point in ladder.points):
        yield (
            f"at equal FLOPs: minus the loss of the {base} model that costs as much, trained to its end; interpolated "
            "between its sizes. Outside of them nothing is said."
        )
    if any(ladder.slope for ladder in found.sizes):
        yield (
            "slope over size: t interval from each size's own spread of the paired differences (Welch and "
            "Satterthwaite); uncorrected."
        )
    if any(ladder.curves for ladder in found.sizes):
        yield (
            "a, c: bootstrap over the seeds of each size, widened for their small number. off by: the largest distance "
            f"of a mean. p of misfit: F test of the curve ({METRICS[found.metric].words})."
        )


def _once(ladders: Iterable[SizeLadder]) -> list[ScalingCurve]:
    """The curves, that of the baseline once."""
    found: dict[str, ScalingCurve] = {}
    for curve in (curve for ladder in ladders for curve in ladder.curves):
        found.setdefault(curve.variant, curve)
    return list(found.values())


def _curve_name(curve: ScalingCurve, found: Comparison) -> str:
    return display_name(curve.variant or found.baseline)


def _with_ends(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
