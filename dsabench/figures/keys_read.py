"""Quality against what a query reads and against the time of a step, for methods that differ in more than k."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from dsabench.analysis.step_times_check import step_times
from dsabench.analysis.variants import display_name, scored_unit
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import (
    REFERENCE,
    at_least,
    line,
    no_difference,
    panel_title,
    plain_log_ticks,
    points_of,
    say,
)
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.figures.style import GREY, Look, looks
from dsabench.metrics import METRICS

_FAR = 10
"""Differences of more than so many margins would press all others onto one line: the axis is then bent."""

_READ = METRICS["k_effective"]
_MARGIN: dict[str, Any] = {"color": GREY, "linestyle": (0, (5, 2)), "linewidth": 1.0, "zorder": 2}


def quality_by_keys_read(data: FigureData) -> Drawn | str:
    """Difference to the baseline against the keys that a query reads, and against the time of a step over its."""
    if "k_effective" not in data.runs:
        return "no run says how many keys a query reads (runs of version 0.6 on do)"
    if not len(data.pairs):
        return f"no pairs with {data.baseline or 'a baseline'}"
    pairs = data.pairs.set_index("a.run_id")
    runs = data.done.copy()
    runs["difference"] = runs["run_id"].map(pairs["a.val_loss"] - pairs["b.val_loss"])
    by_id = runs.set_index("run_id")
    base = by_id.reindex(runs["run_id"].map(pairs["b.run_id"]))
    one_machine = base["machine"].to_numpy() == runs["machine"].to_numpy()
    runs["time"] = np.where(one_machine, runs["step_ms"] / base["step_ms"].to_numpy(), np.nan)
    shown = runs[runs["difference"].notna() & runs["k_effective"].notna()]
    if shown.empty:
        return "no run of a pair says how many keys a query reads (runs of version 0.6 on do)"
    doubt = step_times(data.runs.loc[runs.index].astype({"length": int})).doubt(
        [(int(length), str(variant)) for length, variant in set(zip(runs["length"], runs["variant"], strict=True))]
    )
    # One page for all: each variant is one point, told apart by colour and marker together. Dense attention's look is
    # kept for it, though it is a line here.
    kept, notes = too_many(pages(shown, [looks([*shown["variant"].unique(), "dense"])]))
    if doubt:
        notes.append(f"{doubt}: what a step costs is not known")
    return Drawn([_page(page, data, doubt) for page in kept], notes)


def _page(page: Page, data: FigureData, doubt: str) -> Figure:
    base, margin = display_name(data.baseline or "dense"), data.scope.verdict.margin
    extra = [
        no_difference(base),
        Line2D([], [], **_MARGIN, label=f"margin, {margin:g} nats"),
    ]
    caption = [
        f"Final validation loss minus {base} of the same seed.",
        points_of(page.runs, "+-1 standard deviation"),
        f"Keys that a query reads: {_READ.meaning}.",
        f"Times: {doubt}." if doubt else "",
    ]
    loss = METRICS["val_loss"].per(scored_unit(page.runs["task_accuracy"]))
    figure, panels = empty_page(page, 2, extra, caption)
    label = f"{loss.words} minus {base}\n({loss.unit})"
    for axes, row, column in outer_labels(panels, "", [label, label]):
        mine = page.of(page.columns[column])
        _points(axes, mine, page.style, ("k_effective", "time")[row])
        axes.axhline(0, **REFERENCE)
        axes.axhline(margin, **_MARGIN)
        axes.set_xlabel((_READ.words, f"time of a step over {base}'s")[row])
        title = f"L = {page.columns[column]}" if row == 0 or page.flat else ""
        panel_title(axes, title, loss.better, mine)
    far = float(page.runs["difference"].abs().max()) > _FAR * margin
    for several in panels:
        for axes in several:
            if far:
                _bent(axes, margin, page.runs["difference"])
            else:
                at_least(axes, 2 * margin)
    few_ticks(panels)
    return figure


def _bent(axes: Axes, margin: float, differences: pd.Series[float]) -> None:
    """A y axis that is linear within the margin and logarithmic beyond it, with ticks at the margin times 10, 100."""
    axes.set_yscale("symlog", linthresh=margin, linscale=1.0)
    low, high = float(differences.min()), float(differences.max())
    axes.set_ylim(min(2 * low, -1.5 * margin), max(2 * high, 1.5 * margin))
    ticks = [0.0, *(sign * margin * 10**n for n in range(6) for sign in (-1, 1))]
    inside = [tick for tick in ticks if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    axes.yaxis.set_major_locator(FixedLocator(inside))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in inside]))
    axes.yaxis.set_minor_locator(NullLocator())


def _points(axes: Axes, runs: pd.DataFrame, style: dict[str, Look], x: str) -> None:
    runs = runs[runs[x].gt(0) & np.isfinite(runs[x])]
    if runs.empty:
        say(axes, "no times" if x == "time" else "no pairs")
        return
    for variant, look in style.items():
        mine = runs[runs["variant"] == variant]
        if mine.empty:
            continue
        points: dict[str, Any] = {"marker": look.marker, "color": look.colour, "markerfacecolor": "none"}
        axes.plot(mine[x], mine["difference"], **points, ls="", ms=3, mew=0.7, alpha=0.75, zorder=3)
        at, middle = float(mine[x].mean()), float(mine["difference"].mean())
        axes.errorbar(at, middle, mine["difference"].std(), color=look.colour, ls="none", capsize=3, lw=1.1, zorder=4)
        axes.plot([at], [middle], **{**line(look), "linestyle": ""}, zorder=5)
    low, high = float(runs[x].min()), float(runs[x].max())
    widen = max(1.15, math.sqrt(2 * low / high))
    axes.set_xscale("log")
    axes.set_xlim(low / widen, high * widen)
    plain_log_ticks(axes, low / widen, high * widen, which="x")
