"""Models of several sizes: the difference against size and FLOPs, and the losses with their fitted curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from dsabench.analysis.comparison import Comparison
from dsabench.analysis.comparison_row import Estimate
from dsabench.analysis.size_results import ScalingCurve, SizeLadder
from dsabench.analysis.size_tables import size_name
from dsabench.analysis.variants import display_name, variant_order
from dsabench.figures.data import PER_PAGE, Drawn, FigureData
from dsabench.figures.drawing import REFERENCE, balanced, handle, legend_layout, line, say
from dsabench.figures.style import GREY, Look, looks, new_figure
from dsabench.metrics import METRICS

_WIDTH, _PANEL, _CHARACTERS = 9.2, 3.0, 112
"""Inches of a page and of the height of its panels; characters of a line of the caption."""

_APART, _PAD = 0.012, 0.08
"""Shares of the x axis: half of the distance between two variants at one size, and what is free at each end."""


def against_size(data: FigureData) -> Drawn | str:
    """Difference against size with its slope, difference at equal FLOPs, and loss against FLOPs with fitted curves."""
    if data.baseline is None:
        return "needs a baseline; name an attention of these runs with --baseline"
    found = data.comparison
    if not found.sizes:
        return "needs one model in at least three sizes, otherwise alike; try --config sizes"
    figures, notes = [], []
    for length in sorted({ladder.length for ladder in found.sizes}):
        ladders = sorted(
            (ladder for ladder in found.sizes if ladder.length == length),
            key=lambda ladder: variant_order(ladder.variant),
        )
        kept = ladders[: PER_PAGE - 1]
        if rest := ladders[PER_PAGE - 1 :]:
            notes.append(f"{len(rest)} variants at {length} tokens are not drawn; choose some with --where")
        figures.append(_page(kept, found))
    return Drawn(figures, notes)


def _page(ladders: Sequence[SizeLadder], found: Comparison) -> Figure:
    base = display_name(found.baseline)
    style = looks([found.baseline, *(ladder.variant for ladder in ladders)])
    handles = [handle(look, display_name(variant)) for variant, look in style.items()]
    margin = Line2D([], [], color=GREY, linestyle=(0, (5, 2)), linewidth=1.0, label="margin")
    handles += [Line2D([], [], **REFERENCE, label="no difference")] + ([margin] if found.margin else [])
    text = balanced(_caption(ladders, found), _CHARACTERS)
    lines, columns = legend_layout([str(one.get_label()) for one in handles], 100)
    figure = new_figure(_WIDTH, _PANEL + 0.35 + 0.2 * lines + 0.16 * (text.count("\n") + 1))
    gap, equal, loss = figure.subplots(1, 3)
    _gaps(gap, ladders, style, found)
    _equal_flops(equal, ladders, style, found)
    gap.set_ylabel(f"variant minus {base}\n({found.unit})")
    low, high = (pick(axes.get_ylim()[i] for axes in (gap, equal)) for i, pick in ((0, min), (1, max)))
    gap.set_ylim(low, high)
    equal.set_ylim(low, high)
    _losses(loss, ladders, style, found)
    loss.set_ylabel(f"{found.metric.replace('_', ' ')} ({found.unit})")
    for axes in (gap, equal, loss):
        axes.set_title(METRICS[found.metric].better + " is better", loc="right", color=GREY, fontsize=8)
        axes.locator_params(axis="y", nbins=6)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3.5)
    figure.supxlabel(text, fontsize=8, color=GREY, linespacing=1.4)
    return figure


def _caption(ladders: Sequence[SizeLadder], found: Comparison) -> str:
    base = display_name(found.baseline)
    counts = sorted({point.difference.n for ladder in ladders for point in ladder.points})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    sentences = [
        f"L = {ladders[0].length}; n = {seeds} seeds a size; bars: 95 % intervals of paired differences.",
        "Left: runs of one size, with the line whose slope is tested.",
        f"Middle: against the {base} model that costs as many FLOPs, interpolated between its sizes.",
    ]
    if any(ladder.curves for ladder in ladders):
        sentences.append("Right: means, and a + b (C / C0)^-c fitted to them (straight lines where that failed).")
    return " ".join(sentences)


def _gaps(axes: Axes, ladders: Sequence[SizeLadder], style: dict[str, Look], found: Comparison) -> None:
    points = [point for ladder in ladders for point in ladder.points]
    _log_axis(axes, [float(point.size) for point in points], "active parameters", size_name, room=0.14)
    for ladder, shift in zip(ladders, _shifts(len(ladders), axes), strict=True):
        look = style[ladder.variant]
        _intervals(axes, [(point.size * shift, point.difference) for point in ladder.points], look)
        if ladder.slope is None:
            continue
        judged = [point for point in ladder.points if point.difference.n > 1]
        x = np.log10([float(point.size) for point in judged])
        middle = float(np.mean([point.difference.mean for point in judged]))
        axes.plot(10**x, middle + ladder.slope.slope * (x - x.mean()), color=look.colour, lw=1.0, zorder=3)
    _references(axes, found)
    axes.set_title("Against size")


def _equal_flops(axes: Axes, ladders: Sequence[SizeLadder], style: dict[str, Look], found: Comparison) -> None:
    points = [point for ladder in ladders for point in ladder.points]
    axes.set_title("At equal FLOPs")
    if not any(point.same_flops.n for point in points):
        say(axes, "no FLOPs between those\nof two baseline sizes")
        return
    _log_axis(axes, [point.flops for point in ladders[0].points], "FLOPs of a run")
    for ladder, shift in zip(ladders, _shifts(len(ladders), axes), strict=True):
        _intervals(axes, [(point.flops * shift, point.same_flops) for point in ladder.points], style[ladder.variant])
    _references(axes, found)


def _losses(axes: Axes, ladders: Sequence[SizeLadder], style: dict[str, Look], found: Comparison) -> None:
    first = max(ladders, key=lambda ladder: len(ladder.points))
    series = [(found.baseline, [(point.baseline_flops, point.baseline_mean) for point in first.points])]
    series += [(ladder.variant, [(point.flops, point.mean) for point in ladder.points]) for ladder in ladders]
    _log_axis(axes, [flops for flops, _ in series[0][1]], "FLOPs of a run")
    curves = {curve.variant or found.baseline: curve for ladder in reversed(ladders) for curve in ladder.curves}
    for variant, points in series:
        look, (x, y) = style[variant], np.array(points).T
        axes.plot(x, y, **{**line(look), "linestyle": "none"}, zorder=5)
        if variant in curves and not curves[variant].failed:
            at = np.geomspace(x.min(), x.max(), 100)
            axes.plot(at, _on(curves[variant], at), color=look.colour, linestyle=look.line, lw=1.2, zorder=3)
        else:
            axes.plot(x, y, color=look.colour, linestyle=look.line, lw=1.0, zorder=3)
    axes.set_title("Loss against FLOPs" if found.metric == "val_loss" else "Against FLOPs")


def _on(curve: ScalingCurve, flops: np.ndarray) -> np.ndarray:
    found: np.ndarray = curve.a + curve.b * (flops / curve.reference) ** -curve.c
    return found


def _intervals(axes: Axes, places: Sequence[tuple[float, Estimate]], look: Look) -> None:
    known = [(x, one) for x, one in places if one.n]
    x = [place for place, _ in known]
    ends = [[one.mean - one.low if math.isfinite(one.low) else 0.0 for _, one in known]]
    ends += [[one.high - one.mean if math.isfinite(one.high) else 0.0 for _, one in known]]
    means = [one.mean for _, one in known]
    axes.errorbar(x, means, ends, color=look.colour, ls="none", capsize=3, lw=1.1, zorder=4)
    axes.plot(x, means, **{**line(look), "linestyle": "none"}, zorder=5)


def _references(axes: Axes, found: Comparison) -> None:
    axes.axhline(0, **REFERENCE)
    if found.margin:
        axes.axhline(found.margin, color=GREY, linestyle=(0, (5, 2)), linewidth=1.0, zorder=2)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.2 * found.margin), max(high, 1.2 * found.margin))


def _shifts(n: int, axes: Axes) -> list[float]:
    """Factors that put n variants beside each other on a logarithmic axis."""
    low, high = axes.get_xlim()
    return [(high / low) ** (_APART * (2 * i - n + 1)) for i in range(n)]


def _log_axis(
    axes: Axes, values: Sequence[float], label: str, write: Callable[[float], str] = "{:.1e}".format, room: float = 0.24
) -> None:
    """A logarithmic x axis around `values` with a tick at each; labels, `room` of the axis wide, that would touch are
    left out, smallest first."""
    axes.set_xscale("log")
    ticks = sorted(set(values))
    span = math.log(ticks[-1] / ticks[0]) * (1 + 2 * _PAD)
    axes.set_xlim(ticks[0] * math.exp(-_PAD * span), ticks[-1] * math.exp(_PAD * span))
    axes.set_xlabel(label)
    labels, free = [], math.inf
    for tick in reversed(ticks):
        fits = math.log(tick) < free
        labels.append(write(tick).replace("e+", "e") if fits else "")
        free = math.log(tick) - room * span if fits else free
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter(labels[::-1]))
    axes.xaxis.set_minor_locator(NullLocator())
