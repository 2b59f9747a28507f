"""The figure of a task's learning: right answers, and targets that the best layer selects, over training."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import REFERENCE, panel_title, spread_of
from dsabench.figures.over_training import draw_metric, limit, row_labels, rows_with_values
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.metrics import METRICS, Metric
from dsabench.plain import count, is_or_are

_ACCURACY = "task_accuracy"


def task_in_training(data: FigureData) -> Drawn | str:
    """Task accuracy of every variant against the step, and the target recall of those that select."""
    records = data.evaluations(_ACCURACY)
    runs = data.done[data.done["run_id"].isin(records["run_id"])]
    if runs.empty:
        return "no finished run is of a task; data.source: task:recall trains on one"
    kept, notes = too_many(pages(runs, data.pages))
    if missing := len(data.done) - len(runs):
        notes.append(f"{missing:,} of {count(len(data.done), 'run')} {is_or_are(missing)} of a text: not shown")
    return Drawn([_page(page, records) for page in kept], notes)


def _page(page: Page, records: pd.DataFrame) -> Figure:
    mine = records[records["run_id"].isin(page.runs["run_id"])]
    rows = rows_with_values("task", _ACCURACY, mine)
    chances = [metric.chance for metric in rows if metric.chance]
    titles = list(dict.fromkeys(METRICS[name].title for name in chances))
    extra = [Line2D([], [], **REFERENCE, label=" or ".join(titles))]
    differ = (page.runs.groupby("length")[chances].nunique() > 1).to_numpy().any()
    colours = ", in a variant's colour where variants differ" if differ else ""
    caption = [
        f"On held-out windows at full difficulty. {spread_of(page.runs)}",
        *(metric.caption for metric in rows),
        *(METRICS[name].caption for name in chances),
        *([f"Dotted lines{colours}."] if colours else []),
    ]
    figure, panels = empty_page(page, len(rows), extra, caption)
    for axes, row, column in outer_labels(panels, "step", row_labels(rows, page.runs)):
        runs, metric = page.of(page.columns[column]), rows[row]
        drawn = draw_metric(axes, runs, mine, metric, page.style, "nothing is selected")
        means = _chances(runs, metric, drawn)
        one = len({round(chance, 6) for chance in means.values()}) == 1
        for variant, chance in means.items():
            axes.axhline(chance, **(REFERENCE if one else REFERENCE | {"color": page.style[variant].colour}))
        panel_title(axes, f"L = {page.columns[column]}" if row == 0 else "", metric.better, runs)
    for metric, panel in zip(rows, panels, strict=True):
        limit(panel, metric)
    few_ticks(panels)
    return figure


def _chances(runs: pd.DataFrame, metric: Metric, drawn: Iterable[str]) -> dict[str, float]:
    """The chance or floor of each variant that is drawn: of its runs, because the records of an earlier version may
    hold another number than the floor."""
    if not metric.chance:
        return {}
    return {variant: float(runs.loc[runs["variant"] == variant, metric.chance].mean()) for variant in drawn}
