"""Loss against what training cost: FLOPs and seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsabench.analysis.variants import scored_unit
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import at_least, by_step, draw_curves, panel_title, spread_of, wrapped
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.metrics import METRICS

_END = 0.75
"""The lower row shows what follows this share of the smallest budget of a panel."""

_BUDGETS = {
    "flops": "FLOPs: of the model, all training so far; the indexer and its loss included.",
    "seconds": "Time: of training alone, its start included, evaluations left out.",
}


def loss_by_flops(data: FigureData) -> Drawn | str:
    """Validation loss against cumulative model FLOPs."""
    return _loss_by(data, "flops", "length")


def loss_by_seconds(data: FigureData) -> Drawn | str:
    """Validation loss against seconds of training, each kind of machine by itself."""
    return _loss_by(data, "seconds", "where")


def _loss_by(data: FigureData, cost: str, facet: str) -> Drawn | str:
    records = data.evaluations(cost, "val_loss")
    known = data.done[data.done["run_id"].isin(records.loc[records[cost] > 0, "run_id"])]
    if known.empty:
        if data.done.empty:
            return "no run has finished with a finite validation loss"
        return f"no evaluation recorded its {cost} (an older dsabench made these runs); train some again"
    notes = []
    if missing := len(data.done) - len(known):
        notes.append(f"{missing} of {len(data.done)} runs recorded no evaluation with its {cost} and are not shown")
    several = known["machine"].nunique() > 1
    if facet == "where":
        where = [
            (int(length), machine if several else "")
            for length, machine in zip(known["length"], known["machine"], strict=True)
        ]
        known = known.assign(where=pd.Series(where, index=known.index, dtype=object))
    kept, more = too_many(pages(known, data.pages, facet))
    return Drawn([_page(page, records, cost) for page in kept], notes + more)


def _page(page: Page, records: pd.DataFrame, cost: str) -> Figure:
    first, second = page.parts
    caption = [
        f"{first}: all of training; {second}: its end (from {_END:.0%} of the smallest budget on).",
        spread_of(page.runs),
        _BUDGETS[cost],
    ]
    records = records[records["run_id"].isin(page.runs["run_id"])]
    label = METRICS["train_seconds"].axis
    if cost == "flops":
        most = float(records[cost].max())
        power = 3 * int(np.log10(most) // 3)
        records = records.assign(flops=records[cost] / 10**power)
        label = f"{METRICS['flops'].words} (1e{power} {METRICS['flops'].unit})"
    figure, panels = empty_page(page, 2, [], caption)
    loss = METRICS["val_loss"].per(scored_unit(page.runs["task_accuracy"]))
    for axes, row, column in outer_labels(panels, label, [loss.axis] * 2):
        mine = page.of(page.columns[column])
        drawn = _draw(axes, mine, records, cost, page)
        length, where = _column_of(page.columns[column])
        panel_title(axes, f"{where}\nL = {length}".strip() if row == 0 else "", loss.better, mine)
        smallest, largest = min(low for low, _ in drawn), max(high for _, high in drawn)
        axes.set_xlim(_END * smallest if row else -0.03 * largest, 1.03 * largest)
    _limits_of_the_end(panels[1])
    few_ticks(panels)
    return figure


def _column_of(value: object) -> tuple[object, str]:
    """Length and machine of a column of panels; its machine is empty when there is one only."""
    length, where = value if isinstance(value, tuple) else (value, "")
    return length, wrapped(where)


def _draw(axes: Axes, mine: pd.DataFrame, records: pd.DataFrame, cost: str, page: Page) -> list[tuple[float, float]]:
    """Draw every variant; the smallest and the largest cost of its runs."""
    drawn = []
    for i, (variant, look) in enumerate(page.style.items()):
        found = records[records["run_id"].isin(mine.loc[mine["variant"] == variant, "run_id"])]
        if len(found):
            x, y = by_step(found, cost), by_step(found, "val_loss")
            draw_curves(axes, x, y, look, i)
            drawn.append((float(x.max().min()), float(x.max().max())))
    return drawn


def _limits_of_the_end(row: list[Axes]) -> None:
    """Fit the shared y axis to what of the curves is inside the x axes."""
    values = []
    for axes in row:
        first, last = axes.get_xlim()
        drawn = [line.get_xydata() for line in axes.lines]
        drawn += [path.vertices for band in axes.collections for path in band.get_paths()]
        for x, y in (np.asarray(points, float).T for points in drawn):
            values += list(y[(x >= first) & (x <= last) & np.isfinite(y)])
    if values:
        pad = 0.08 * (max(values) - min(values)) or 0.1  # one value alone has no span
        row[0].set_ylim(min(values) - pad, max(values) + pad)
        at_least(row[0], 0.06)
