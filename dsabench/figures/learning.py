"""The figure of learning: losses on held-out and on training windows, and their gap, which is what is memorised."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from dsabench.analysis.variants import scored_unit
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import panel_title, spread_of
from dsabench.figures.over_training import draw_metric, limit, row_labels, rows_with_values
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.metrics import GAP
from dsabench.store import load_curves

LOSSES = ("val_loss", "train_loss")


def loss_by_step(data: FigureData) -> Drawn | str:
    """Validation and training loss of every variant against the step, their difference, and the batches' own loss."""
    records = data.evaluations().dropna(subset=list(LOSSES))
    records = records.assign(**{GAP: records["val_loss"] - records["train_loss"]})
    records = records[records["step"] > 0]  # what is before the first step would flatten the rest
    runs = data.done[data.done["run_id"].isin(records["run_id"])]
    if runs.empty:
        return "no finished run recorded its loss on training and on held-out windows"
    if records.groupby("run_id")["step"].nunique().max() < 2:
        return "needs at least two evaluations after the first step; try a smaller train.eval_every"
    batches = load_curves(data.scope.store, list(runs["run_id"]), kind="train", columns=["loss"]).frame
    records = pd.concat([records, batches[["run_id", "step", "loss"]]], ignore_index=True)
    kept, notes = too_many(pages(runs, data.pages))
    return Drawn([_page(page, records) for page in kept], notes)


def _page(page: Page, records: pd.DataFrame) -> Figure:
    mine = records[records["run_id"].isin(page.runs["run_id"])]
    rows = rows_with_values("learning", LOSSES[0], mine)
    # A task's windows are never met again.
    memorised = "" if scored_unit(page.runs["task_accuracy"]) == "answer" else ", what was memorised"
    caption = [
        "Held-out windows, and a fixed sample of training windows; without step 0, where both are near ln V. "
        f"{spread_of(page.runs)}",
        f"Gap: validation minus training loss{memorised}; verdicts: dsabench compare --metric {GAP}.",
        *(metric.caption for metric in rows if metric.name not in (*LOSSES, GAP)),
    ]
    figure, panels = empty_page(page, len(rows), [], caption)
    for axes, row, column in outer_labels(panels, "step", row_labels(rows, page.runs)):
        runs = page.of(page.columns[column])
        draw_metric(axes, runs, mine, rows[row], page.style)
        panel_title(axes, f"L = {page.columns[column]}" if row == 0 else "", rows[row].better, runs)
    low, high = float(mine[[*LOSSES]].min().min()), float(mine[[*LOSSES]].max().max())
    for metric, panel in zip(rows, panels, strict=True):
        if metric.name in LOSSES:  # one scale: the two losses are to be compared
            panel[0].set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        else:
            limit(panel, metric)
    for axes in (axes for row in panels for axes in row):  # rows have records at other steps
        axes.set_xlim(0, 1.03 * float(mine["step"].max()))
    few_ticks(panels)
    return figure
