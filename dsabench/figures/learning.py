"""The figure of learning: losses on held-out and on training windows, and their gap, which is what is memorised."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from dsabench.analysis.variants import scored_unit
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import by_step, draw_curves, panel_title, say, spread_of
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many

LOSSES = ("val_loss", "train_loss")
GAP = "gap"
_ROWS = {"val_loss": "validation loss", "train_loss": "training loss", GAP: "gap"}


def loss_by_step(data: FigureData) -> Drawn | str:
    """Validation and training loss of every variant against the step, and their difference."""
    records = data.evaluations().dropna(subset=list(LOSSES))
    records = records.assign(**{GAP: records["val_loss"] - records["train_loss"]})
    records = records[records["step"] > 0]  # what is before the first step would flatten the rest
    runs = data.done[data.done["run_id"].isin(records["run_id"])]
    if runs.empty:
        return "no finished run recorded its loss on training and on held-out windows"
    if records.groupby("run_id")["step"].nunique().max() < 2:
        return "needs at least two evaluations after the first step; try a smaller train.eval_every"
    kept, notes = too_many(pages(runs, data.pages))
    return Drawn([_page(page, records) for page in kept], notes)


def _page(page: Page, records: pd.DataFrame) -> Figure:
    mine = records[records["run_id"].isin(page.runs["run_id"])]
    scored, rows = scored_unit(page.runs["task_accuracy"]), list(_ROWS)
    memorised = "" if scored == "answer" else ", what was memorised"  # a task's windows are never met again
    caption = [
        "Held-out windows, and a fixed sample of training windows; without step 0, where both are near ln V. "
        f"{spread_of(page.runs)}",
        f"Gap: validation minus training loss{memorised}; verdicts: dsabench compare --metric generalisation_gap.",
    ]
    figure, panels = empty_page(page, len(_ROWS), [], caption)
    units = [f"{title}\n(nats per {scored})" for title in _ROWS.values()]
    for axes, row, column in outer_labels(panels, "step", units):
        runs = page.of(page.columns[column])
        drawn = False
        for i, (variant, look) in enumerate(page.style.items()):
            found = mine[mine["run_id"].isin(runs.loc[runs["variant"] == variant, "run_id"])]
            table = by_step(found, rows[row])
            if table.empty:
                continue
            drawn = True
            draw_curves(axes, None, table, look, i)
        if not drawn:
            say(axes, "not recorded")
        panel_title(axes, f"L = {page.columns[column]}" if row == 0 else "", "lower", runs)
    low, high = float(mine[[*LOSSES]].min().min()), float(mine[[*LOSSES]].max().max())
    for panel in (*panels[0], *panels[1]):  # one scale: the two losses are to be compared
        panel.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    few_ticks(panels)
    return figure
