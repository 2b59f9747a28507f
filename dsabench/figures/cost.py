"""The figure of costs: step time and peak memory against length, each kind of machine by itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dsabench.analysis.peak_memory import DOUBT, MOST_SPREAD, memory_spread
from dsabench.analysis.step_times_check import step_times
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import against_length, panel_title, plain_log_ticks, points_of, wrapped
from dsabench.figures.sheet import Page, empty_page, outer_labels, pages, panel_width, too_many
from dsabench.figures.style import GREY
from dsabench.metrics import METRICS
from dsabench.plain import count, is_or_are

MEASURES = ("step_ms", "peak_memory_mb")

_GUIDES: tuple[tuple[int, str, dict[str, Any]], ...] = (
    (1, "grows as L", {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 1.0}),
    (2, "grows as L x L", {"color": GREY, "linestyle": (0, (5, 2)), "linewidth": 1.0}),
)

_LEAST = 4.0
"""Smallest ratio of the ends of a y axis: a difference of a few percent must not fill the panel."""


def cost_by_length(data: FigureData) -> Drawn | str:
    """Step time and peak memory against length, both axes logarithmic."""
    runs = data.done[data.done[list(MEASURES)].gt(0).any(axis=1)]
    if runs.empty:
        return "no finished run has a step time or peak memory"
    lengths = runs.groupby("machine")["length"].transform("nunique")
    if not (lengths > 1).any():
        on = " on one machine" if runs["length"].nunique() > 1 else ""
        return f"needs at least two lengths{on}; try --lengths 64 128 256"
    notes = []
    if alone := sorted(runs.loc[lengths < 2, "machine"].unique()):
        n = int((lengths < 2).sum())
        notes.append(f"{count(n, 'run')} {is_or_are(n)} not shown: {'; '.join(alone)} has runs of one length only")
    if runs["machine"].nunique() > 1:
        notes.append(f"times of {runs['machine'].nunique()} kinds of machine are in panels of their own")
    runs = runs[lengths > 1]
    whole = data.runs.loc[runs.index].astype({"length": int})  # with the fields of the environment
    spread = float(memory_spread(whole).max())
    if spread > MOST_SPREAD:
        notes.append(f"peak memory of one variant and length differs up to {spread:.2f}-fold between seeds: {DOUBT}")
    times = step_times(whole)
    shapes = [(int(length), str(variant)) for length, variant in set(zip(runs["length"], runs["variant"], strict=True))]
    if doubt := times.doubt(shapes):
        notes.append(f"{doubt}: what a step costs is not known")
    kept, more = too_many(pages(runs, data.pages, facet="machine"))
    return Drawn([_page(page, spread) for page in kept], notes + more)


def _page(page: Page, spread: float) -> Figure:
    extra = [Line2D([], [], **look, label=name) for _, name, look in _GUIDES]
    figure, panels = empty_page(page, 2, extra, [_seeds(page.runs), _work(page.runs), _warning(spread)], share_y=False)
    labels = [METRICS[name].axis for name in MEASURES]
    for axes, row, column in outer_labels(panels, "sequence length (tokens)", labels):
        mine = page.of(page.columns[column])
        measured = mine[mine[MEASURES[row]] > 0]
        against_length(axes, measured, page.style, MEASURES[row], panel_width(page, 2), widest=0.06, ranges=True)
        if len(measured):
            _logarithmic(axes, measured[MEASURES[row]])
            _guides(axes, measured, MEASURES[row])
        machine = str(page.columns[column]) if len(page.columns) > 1 or page.total > 1 else ""
        # The line below the machine's name is for what stands at the right.
        panel_title(axes, f"{wrapped(machine)}\n" if machine and row == 0 else "", METRICS[MEASURES[row]].better, mine)
    return figure


def _seeds(runs: pd.DataFrame) -> str:
    where = f"On {runs['machine'].iloc[0]}. " if runs["machine"].nunique() == 1 else ""
    return where + points_of(runs, "lowest to highest")


def _work(runs: pd.DataFrame) -> str:
    """How many tokens a step has at each length, which says what the slopes mean."""
    tokens = runs.loc[runs["tokens_per_step"].notna(), "tokens_per_step"]
    if len(tokens) < len(runs):
        return ""
    if tokens.max() <= 1.05 * tokens.min():  # a batch is rounded to whole windows
        return (
            f"A step is {tokens.median():,.0f} tokens at every length: work linear in the length of a window then "
            "takes the same time at each, work quadratic in it grows as L."
        )
    return f"A step is {tokens.min():,.0f} to {tokens.max():,.0f} tokens."


def _warning(spread: float) -> str:
    if not spread > MOST_SPREAD:
        return ""
    return f"Peak memory differs {spread:.1f}-fold between seeds of one variant: something else is in it, too."


def _logarithmic(axes: Axes, values: pd.Series[float]) -> None:
    axes.set_yscale("log")
    low, high = float(values.min()), float(values.max())
    widen = max(math.sqrt(_LEAST * low / high), 1.2)
    low, high = low / widen, high * widen
    axes.set_ylim(low, high)
    plain_log_ticks(axes, low, high)


def _guides(axes: Axes, runs: pd.DataFrame, column: str) -> None:
    """Slopes from a point a little below the shortest length's lowest mean."""
    shortest = runs[runs["length"] == runs["length"].min()]
    start = 0.93 * float(shortest.groupby("variant")[column].mean().min())
    at = np.array([runs["length"].min(), runs["length"].max()], dtype=float)
    limits = axes.get_ylim()
    for power, _, look in _GUIDES:
        axes.plot(at, start * (at / at[0]) ** power, **look, zorder=1.5)
    axes.set_ylim(limits)
