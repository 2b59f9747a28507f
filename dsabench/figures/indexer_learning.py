"""The figure of the indexer's learning: its KL loss and the attention mass that its selection holds."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import REFERENCE, by_step, panel_title, spread_of
from dsabench.figures.over_training import draw_metric, limit, row_labels, rows_with_values
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.figures.style import GREY
from dsabench.metrics import rows_of
from dsabench.store import load_curves

_KL = "val_kl"


def indexer_in_training(data: FigureData) -> Drawn | str:
    """KL loss and mass recall of every selecting variant against the step."""
    names = [metric.name for metric in rows_of("indexer", _KL) if metric.selecting]
    records = data.evaluations().dropna(subset=names, how="all")
    runs = data.done[data.done["run_id"].isin(records["run_id"])]
    if runs.empty:
        return "no finished run has an indexer (or recorded its KL or mass recall); try --attentions dense dsa"
    stages = load_curves(data.scope.store, list(runs["run_id"]), kind="train", columns=[]).frame
    dense = stages[stages["stage"] == "dense"].groupby("run_id")["step"].max()
    kept, notes = too_many(pages(runs, data.pages))
    return Drawn([_page(page, records, dense) for page in kept], notes)


def _page(page: Page, records: pd.DataFrame, dense: pd.Series[int]) -> Figure:
    mine = records[records["run_id"].isin(page.runs["run_id"])]
    rows = rows_with_values("indexer", _KL, mine)
    extra = []
    if any(metric.chance for metric in rows):
        extra.append(Line2D([], [], color=GREY, ls=":", lw=1.2, label="recall by chance (in the colour of its k)"))
    if page.runs["run_id"].isin(dense.index).any():
        extra.append(Line2D([], [], **{**REFERENCE, "linestyle": "-", "linewidth": 0.8}, label="end of dense warm-up"))
    caption = [f"On held-out windows. {spread_of(page.runs)}", *(metric.caption for metric in rows)]
    figure, panels = empty_page(page, len(rows), extra, caption)
    for axes, row, column in outer_labels(panels, "step", row_labels(rows, page.runs)):
        runs, metric = page.of(page.columns[column]), rows[row]
        for variant, found in draw_metric(axes, runs, mine, metric, page.style).items():
            if metric.chance and len(chance := by_step(found, metric.chance)):
                colour = page.style[variant].colour
                axes.plot(chance.index, chance.mean(axis=1), color=colour, ls=":", lw=1.2, zorder=2)
        for step in sorted({int(dense[run]) for run in runs["run_id"] if run in dense.index}):
            axes.axvline(step, color=GREY, lw=0.8, zorder=1.5)
        panel_title(axes, f"L = {page.columns[column]}" if row == 0 else "", metric.better, runs)
    for metric, panel in zip(rows, panels, strict=True):
        limit(panel, metric)
    few_ticks(panels)
    return figure
