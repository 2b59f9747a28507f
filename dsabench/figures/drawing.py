"""Drawing that several figures share: seeds and their mean, legends, LEAK marks, captions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from dsabench.analysis.variants import display_name
from dsabench.figures.style import GREY, INK, PAPER, Look, length_axis

MANY = 12
"""More seeds than this are a band from the lowest to the highest, not a line each."""

SEED_ALPHA = 0.6
"""Opacity of the line of a single seed: it stands back behind the mean, and is still seen on a dark page."""

REFERENCE: dict[str, Any] = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "zorder": 2}
"""The line of a baseline, a chance level or a guide: dotted grey."""


def no_difference(base: str) -> Line2D:
    """The legend entry of the baseline where differences to it are drawn."""
    return Line2D([], [], **REFERENCE, label=f"{base} (no difference)")


LEAK = "LEAK: an attention that sees later tokens; its loss means nothing."


def line(look: Look) -> dict[str, Any]:
    """The line and markers of a variant's mean."""
    return {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": look.line,
        "linewidth": 1.4,
        "markersize": 6.5,
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.6,
    }


def handle(look: Look, name: str) -> Line2D:
    """A legend entry of a variant."""
    return Line2D([], [], **line(look), label=name)


def legend_name(variant: str, runs: pd.DataFrame, width: int = 80) -> str:
    """A variant as legends write it, in lines of at most `width` characters, with LEAK when one of its runs leaks."""
    name = display_name(variant) + (" [LEAK]" if leaks(variant, runs) else "")
    return "\n".join(textwrap.wrap(name, width, break_on_hyphens=False))


def leaks(variant: str, runs: pd.DataFrame) -> bool:
    """Whether a run of `variant` is marked LEAK."""
    return bool(runs.loc[runs["variant"] == variant, "leak"].any())


def panel_title(axes: Axes, title: str, better: str, runs: pd.DataFrame) -> None:
    """A panel's title at its left; at its right which way is better, and LEAK when one of `runs` leaks."""
    axes.set_title(title, fontsize=8 if "\n" in title else 10)
    leak = "LEAK; " if runs["leak"].any() else ""
    if better:
        axes.set_title(f"{leak}{better} is better", loc="right", color=INK if leak else GREY, fontsize=8)
    elif leak:
        axes.set_title("LEAK", loc="right", color=INK, fontsize=8)


def legend_layout(names: Sequence[str], characters: int) -> tuple[int, int]:
    """(lines of text, columns) of a legend whose columns are as wide as its longest entry."""
    widest = max(len(text) for name in names for text in name.split("\n"))
    columns = max(1, min(len(names), characters // (widest + 12)))
    lines = max(name.count("\n") + 1 for name in names)
    return lines * math.ceil(len(names) / columns), columns


def seeds_of(runs: pd.DataFrame) -> str:
    """`n = 5 seeds`, counted for each length and variant; empty without runs."""
    counts = runs.groupby(["length", "variant"])["seed"].nunique()
    if counts.empty:
        return ""
    low, high = int(counts.min()), int(counts.max())
    plural = "s" if high > 1 else ""
    return f"n = {low} seed{plural}" if low == high else f"n = {low} to {high} seeds"


def after_training(runs: pd.DataFrame) -> tuple[str, str]:
    """Sentence of a caption about means over seeds at the end, and what follows where bars are drawn about them."""
    if (n := seeds_of(runs)) == "n = 1 seed":
        return f"After training; {n}: the spread is not known.", ""
    return f"After training; {n}, means.", "; bars: +-1 standard deviation"


def spread_of(runs: pd.DataFrame, single: str = "Thin lines") -> str:
    """Number of seeds, and how they and their mean are drawn as curves."""
    if (n := seeds_of(runs)) in ("", "n = 1 seed"):
        return f"{n}: the spread is not known." if n else ""
    most = int(runs.groupby(["length", "variant"])["seed"].nunique().max())
    each = f"{single}: single seeds" if most <= MANY else f"Bands (for more than {MANY} seeds): lowest to highest seed"
    return f"{n}. {each}; lines with markers: means."


def points_of(runs: pd.DataFrame, bars: str) -> str:
    """Number of seeds, and how they and their mean are drawn as points."""
    if (n := seeds_of(runs)) == "n = 1 seed":
        return f"{n}: the spread is not known."
    return f"{n}. Small points: seeds; large points: means; bars: {bars}."


def balanced(text: str, characters: int) -> str:
    """`text` in as few lines as `characters` allow, all about as long."""
    lines = textwrap.wrap(text, characters)
    while len(shorter := textwrap.wrap(text, characters - 1)) <= len(lines) and characters > 40:
        lines, characters = shorter, characters - 1
    return "\n".join(lines)


def wrapped(machine: str) -> str:
    """The name of a machine in lines that fit above a panel."""
    return "\n".join(textwrap.wrap(machine, 34))


def by_step(records: pd.DataFrame, value: str) -> pd.DataFrame:
    """One row a step and one column a run: the last finite `value` recorded there."""
    finite: pd.DataFrame = records.loc[np.isfinite(records[value]), ["step", "run_id", value]]
    return finite.drop_duplicates(["step", "run_id"], keep="last").pivot(index="step", columns="run_id", values=value)


def draw_curves(axes: Axes, x: pd.DataFrame | None, y: pd.DataFrame, look: Look, phase: int = 0) -> None:
    """Seeds thin (a band, when there are MANY), their mean with markers where every seed has a value.

    x and y have one row a step and one column a run; without x the steps are. A mean stands at the seeds' mean x.
    """
    values = y.to_numpy(dtype=float)
    if x is None:
        costs = np.broadcast_to(y.index.to_numpy(dtype=float)[:, None], values.shape)
    else:
        costs = x.reindex(index=y.index, columns=y.columns).to_numpy(dtype=float)
    every = ~(np.isnan(values) | np.isnan(costs)).any(axis=1)  # where a seed is missing the mean would jump
    at, whole = costs[every].mean(axis=1), values[every]
    mean = whole.mean(axis=1)
    if y.shape[1] > MANY:
        axes.fill_between(at, whole.min(axis=1), whole.max(axis=1), color=look.colour, alpha=0.18, lw=0, zorder=2)
    elif y.shape[1] > 1:
        axes.plot(costs, values, color=look.colour, ls="-", lw=0.8, alpha=SEED_ALPHA, zorder=3)
    often = max(1, len(mean) // 8)
    axes.plot(at, mean, **line(look), markevery=(phase % often, often), zorder=4)


def against_length(
    axes: Axes,
    done: pd.DataFrame,
    style: dict[str, Look],
    column: str,
    width: float,
    factor: float = 1.0,
    widest: float = 0.16,
    ranges: bool = False,
) -> None:
    """Single seeds as small points side by side, their mean as a large one, a standard deviation as a bar.

    With `ranges` bars are from the lowest to the highest: on a logarithmic axis the other could go below zero. Variants
    stand beside each other, at most `widest` octaves apart, on an axis of `width` inches.
    """
    done = done.loc[done[column].notna(), ["length", "variant", column]]
    if done.empty:
        say(axes, "no finished runs")
        return
    lengths = sorted({int(length) for length in done["length"]})
    gaps = np.diff(np.log2(lengths)) if len(lengths) > 1 else np.ones(1)
    # Octaves that one variant has at one length; two lengths that nearly coincide may overlap.
    slot = min(widest, 0.7 * max(gaps.min(), np.median(gaps) / 2) / len(style))
    for i, (variant, look) in enumerate(style.items()):
        at, means = [], []
        for length in lengths:
            of_both = (done["variant"] == variant) & (done["length"] == length)
            values = factor * done.loc[of_both, column].to_numpy(dtype=float)
            n = len(values)
            if not n:
                continue
            x = math.log2(length) + (i - (len(style) - 1) / 2) * slot
            at.append(2**x)
            means.append(values.mean())
            if n == 1:
                continue
            spread = np.linspace(-0.32, 0.32, n) * slot
            points: dict[str, Any] = {"marker": look.marker, "color": look.colour, "markerfacecolor": "none"}
            axes.plot(2 ** (x + spread), values, **points, ls="", ms=3, mew=0.7, alpha=0.75, zorder=3)
            # A mean of equal values may be beside them by its rounding.
            ends = [[max(0.0, means[-1] - values.min())], [max(0.0, values.max() - means[-1])]]
            bar = ends if ranges else values.std(ddof=1)
            axes.errorbar(at[-1], means[-1], bar, color=look.colour, capsize=3, lw=1.1, zorder=4)
        axes.plot(at, means, **line(look), zorder=5)
    length_axis(axes, lengths, width, 0.15 + 0.5 * slot * len(style))


def at_least(axes: Axes, span: float) -> None:
    """Widen the y axis to at least `span`, so that a small difference does not fill the panel."""
    low, high = axes.get_ylim()
    if high - low < span:
        axes.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def plain_log_ticks(axes: Axes, low: float, high: float, which: Literal["x", "y"] = "y") -> None:
    """Ticks of a logarithmic axis from `low` to `high` as plain numbers: the style sets no mathematics."""
    subs = (1, 2, 3, 4, 6, 8) if high < 10 * low else (1, 2, 5) if high < 50 * low else (1,)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_minor_locator(NullLocator())
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


def say(axes: Axes, text: str) -> None:
    """Write why a panel is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])
