"""Loss by how far back a token's n-gram last stood in its window: what an attention no longer sees costs there."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from dsabench.analysis.variants import display_name
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import REFERENCE, after_training, at_least, line, no_difference, panel_title
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.figures.style import GREY, Look
from dsabench.metrics import METRICS
from dsabench.store.curves import COPIES, COPY_COUNTS

FEWEST = 30
"""Tokens of a distance whose mean is drawn: the mean of a few would set the scale."""


def loss_by_copy_distance(data: FigureData) -> Drawn | str:
    """Final validation loss by copy distance, mean over seeds, and its paired difference to the baseline."""
    found = data.evaluations()
    found = found[found[COPIES].notna()]
    losses = {
        run: np.where(np.asarray(tokens, float) < FEWEST, np.nan, np.asarray(means, float))
        for run, means, tokens in zip(found["run_id"], found[COPIES], found[COPY_COUNTS], strict=True)
    }
    runs = data.done[data.done["run_id"].isin(list(losses))]
    if runs.empty:
        return "no run on text recorded its loss by copy distance (runs of version 0.7 on do)"
    notes = []
    if missing := len(data.done) - len(runs):
        notes.append(f"{missing} of {len(data.done)} runs recorded no loss by copy distance: not shown")
    kept, more = too_many(pages(runs, data.pages))
    pairs = data.pairs[data.pairs["a.run_id"].isin(list(losses)) & data.pairs["b.run_id"].isin(list(losses))]
    return Drawn([_page(page, losses, pairs, data.baseline) for page in kept], notes + more)


def _page(page: Page, losses: dict[str, np.ndarray], pairs: pd.DataFrame, baseline: str | None) -> Figure:
    pairs = pairs[pairs["a.run_id"].isin(page.runs["run_id"])]
    base = display_name(baseline) if baseline else ""
    extra = [no_difference(base)] if len(pairs) else []
    ended, bars = after_training(page.runs)
    caption = [
        ended,
        "A copy is a token whose last four tokens, it included, stand in the window before; new: all others.",
        "The point at 2^n has the distances from 2^n to twice as many, less one; those of fewer than "
        f"{FEWEST} tokens are left out.",
        f"{page.parts[1].capitalize()}: difference to {base} of the same seed{bars}." if len(pairs) else "",
        "Marks at the foot: k." if (page.runs["k"] < page.runs["length"]).any() else "",
    ]
    rows = 2 if len(pairs) else 1
    figure, panels = empty_page(page, rows, extra, caption)
    unit = METRICS["val_loss"].unit
    labels = [f"loss ({unit})", f"minus {base} ({unit})"]
    for axes, row, column in outer_labels(panels, "tokens back to the same four tokens", labels):
        length = page.columns[column]
        mine = page.of(length)
        if row == 0:
            for variant, look in page.style.items():
                ids = mine.loc[mine["variant"] == variant, "run_id"]
                _curve(axes, np.array([losses[run] for run in ids]), look)
        else:
            axes.axhline(0, **REFERENCE)
            here = pairs[pairs["length"] == length]
            for variant, look in page.style.items():
                both = here[here["variant"] == variant]
                sides = [np.array([losses[run] for run in both[f"{side}.run_id"]]) for side in "ab"]
                _curve(axes, sides[0] - sides[1], look, bars=True)
        _mark_k(axes, mine, page.style)
        _distances(axes, max(len(losses[run]) for run in mine["run_id"]))
        panel_title(axes, f"L = {length}" if row == 0 or page.flat else "", "lower", mine)
    at_least(panels[0][0], 0.2)
    if rows == 2:
        at_least(panels[1][0], 0.1)
    few_ticks(panels)
    return figure


def _curve(axes: Axes, rows: np.ndarray, look: Look, bars: bool = False) -> None:
    """Means over runs, new tokens by themselves at the left; bins that some run lacks are left out."""
    if not len(rows):
        return
    x, mean = np.arange(rows.shape[1]), rows.mean(0)
    style = line(look) | {"markersize": 4.5, "linewidth": 1.2}
    axes.plot(x[:1], mean[:1], **{**style, "linestyle": ""}, zorder=4)
    known = np.flatnonzero(np.isfinite(mean[1:])) + 1
    axes.plot(x[known], mean[known], **style, zorder=4)
    if bars and len(rows) > 1:
        seen = np.r_[0, known]
        axes.errorbar(
            x[seen], mean[seen], rows[:, seen].std(0, ddof=1), color=look.colour, ls="none", lw=0.8, alpha=0.7, zorder=3
        )


def _mark_k(axes: Axes, runs: pd.DataFrame, style: dict[str, Look]) -> None:
    foot = axes.get_xaxis_transform()
    for variant, look in style.items():
        mine = runs[(runs["variant"] == variant) & (runs["k"] < runs["length"])]
        for k in sorted(mine["k"].unique()):
            at = 1 + np.log2(float(k))
            axes.plot([at], [0.03], transform=foot, marker=look.marker, mfc="none", mec=look.colour, ms=5, ls="none")


def _distances(axes: Axes, n_bins: int) -> None:
    """Names of the bins: bin i begins at a distance of 2^(i-1)."""
    step = max(1, round(n_bins / 6))
    places = [0, *range(1 + (n_bins - 2) % step, n_bins, step)]
    axes.set_xlim(-0.6, n_bins - 0.4)
    axes.xaxis.set_major_locator(FixedLocator([float(place) for place in places]))
    axes.xaxis.set_major_formatter(FixedFormatter(["new", *(f"{2 ** (place - 1)}" for place in places[1:])]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(0.5, color=GREY, lw=0.5, alpha=0.6, zorder=1)
