"""The figure of a task's learning: right answers, and targets that the best layer selects, over training."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import REFERENCE, by_step, draw_curves, panel_title, say, spread_of
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.figures.style import Look

_ACCURACY, _RECALL = "task_accuracy", "target_recall_best"
_ROWS = {
    _ACCURACY: ("task accuracy\n(share of answers)", "chance_accuracy"),
    _RECALL: ("target recall, best layer\n(share of targets)", "target_recall_chance"),
}
"""What is drawn: its axis, and the column that has its chance."""


def task_in_training(data: FigureData) -> Drawn | str:
    """Task accuracy of every variant against the step, and the target recall of those that select."""
    records = data.evaluations(_ACCURACY)
    runs = data.done[data.done["run_id"].isin(records["run_id"])]
    if runs.empty:
        return "no finished run is of a task; data.source: task:recall trains on one"
    kept, notes = too_many(pages(runs, data.pages))
    if missing := len(data.done) - len(runs):
        notes.append(f"{missing} of {len(data.done)} runs are of a text: not shown")
    return Drawn([_page(page, records) for page in kept], notes)


def _page(page: Page, records: pd.DataFrame) -> Figure:
    mine = records[records["run_id"].isin(page.runs["run_id"])]
    rows = [name for name in _ROWS if np.isfinite(mine[name]).any()]
    extra = [Line2D([], [], **REFERENCE, label="chance")]
    chances = page.runs.groupby("length")[[chance for _, chance in _ROWS.values()]].nunique()
    caption = [
        f"On held-out windows at full difficulty. {spread_of(page.runs)}",
        "Chance: of the accuracy, the best guess without the answer's targets; of the recall, as many random tokens"
        + (", in a variant's colour where variants differ." if (chances > 1).to_numpy().any() else "."),
        "Target recall: share of the places where answers are to be found that the layer which selects most of them "
        "has among its selected tokens."
        if _RECALL in rows
        else "",
    ]
    figure, panels = empty_page(page, len(rows), extra, caption)
    for axes, row, column in outer_labels(panels, "step", [_ROWS[name][0] for name in rows]):
        runs = page.of(page.columns[column])
        name = rows[row]
        found = mine[mine["run_id"].isin(runs["run_id"])]
        _draw(axes, runs, found, name, page.style)
        panel_title(axes, f"L = {page.columns[column]}" if row == 0 else "", "higher", runs)
    for axes in (axes for panel in panels for axes in panel):
        axes.set_ylim(0, 1.03)
    few_ticks(panels)
    return figure


def _draw(axes: Axes, runs: pd.DataFrame, records: pd.DataFrame, name: str, style: dict[str, Look]) -> None:
    chances: dict[str, float] = {}
    for i, (variant, look) in enumerate(style.items()):
        found = records[records["run_id"].isin(runs.loc[runs["variant"] == variant, "run_id"])]
        table = by_step(found, name)
        if len(table):
            draw_curves(axes, None, table, look, i)
            chances[variant] = float(found[_ROWS[name][1]].mean())
    if not chances:
        say(axes, "nothing is selected")
    one = len({round(chance, 6) for chance in chances.values()}) == 1
    for variant, chance in chances.items():
        axes.axhline(chance, **(REFERENCE if one else REFERENCE | {"color": style[variant].colour}))
