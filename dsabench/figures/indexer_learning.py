"""The figure of the indexer's learning: its KL loss and the attention mass that its selection holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import REFERENCE, by_step, draw_curves, panel_title, say, spread_of
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.figures.style import GREY
from dsabench.store import load_curves

_ROWS = {
    "val_kl": ("indexer KL (nats)", "lower", "KL"),
    "mass_recall": ("mass recall\n(share of attention)", "higher", "recall"),
}


def indexer_in_training(data: FigureData) -> Drawn | str:
    """KL loss and mass recall of every selecting variant against the step."""
    records = data.evaluations().dropna(subset=list(_ROWS), how="all")
    runs = data.done[data.done["run_id"].isin(records["run_id"])]
    if runs.empty:
        return "no finished run has an indexer (or recorded its KL or mass recall); try --attentions dense dsa"
    stages = load_curves(data.scope.store, list(runs["run_id"]), kind="train", columns=[]).frame
    dense = stages[stages["stage"] == "dense"].groupby("run_id")["step"].max()
    kept, notes = too_many(pages(runs, data.pages))
    return Drawn([_page(page, records, dense) for page in kept], notes)


def _page(page: Page, records: pd.DataFrame, dense: pd.Series[int]) -> Figure:
    mine = records[records["run_id"].isin(page.runs["run_id"])]
    rows = [name for name in _ROWS if np.isfinite(mine[name]).any()]
    warm = page.runs["run_id"].isin(dense.index).any()
    extra = []
    if "mass_recall" in rows:
        extra.append(Line2D([], [], color=GREY, ls=":", lw=1.2, label="recall by chance (in the colour of its k)"))
    if warm:
        extra.append(Line2D([], [], **{**REFERENCE, "linestyle": "-", "linewidth": 0.8}, label="end of dense warm-up"))
    caption = [
        f"On held-out windows. {spread_of(page.runs)}",
        "KL: from the main attention to the indexer, over all earlier tokens in the dense warm-up and over the "
        "selected ones after it: only values of one stage and one k compare."
        if "val_kl" in rows
        else "",
        "Recall: share of full attention on the selected tokens; at chance nothing has been learnt."
        if "mass_recall" in rows
        else "",
    ]
    figure, panels = empty_page(page, len(rows), extra, caption)
    for axes, row, column in outer_labels(panels, "step", [_ROWS[name][0] for name in rows]):
        runs = page.of(page.columns[column])
        name = rows[row]
        _draw(axes, runs, mine, name, page)
        for step in sorted({int(dense[run]) for run in runs["run_id"] if run in dense.index}):
            axes.axvline(step, color=GREY, lw=0.8, zorder=1.5)
        panel_title(axes, f"L = {page.columns[column]}" if row == 0 else "", _ROWS[name][1], runs)
    for name, panel in zip(rows, panels, strict=True):
        if name == "mass_recall":
            panel[0].set_ylim(0, 1.03)
        else:
            panel[0].set_ylim(bottom=0)
    few_ticks(panels)
    return figure


def _draw(axes: Axes, runs: pd.DataFrame, records: pd.DataFrame, name: str, page: Page) -> None:
    drawn = False
    for i, (variant, look) in enumerate(page.style.items()):
        found = records[records["run_id"].isin(runs.loc[runs["variant"] == variant, "run_id"])]
        table = by_step(found, name)
        if table.empty:
            continue
        drawn = True
        draw_curves(axes, None, table, look, i)
        if name == "mass_recall":
            chance = by_step(found, "mass_recall_chance")
            if len(chance):
                axes.plot(chance.index, chance.mean(axis=1), color=look.colour, ls=":", lw=1.2, zorder=2)
    if not drawn:
        say(axes, "not recorded")
