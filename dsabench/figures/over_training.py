"""Panels of metrics over training: rows are metrics of the list, columns lengths, curves variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dsabench.analysis.variants import scored_unit
from dsabench.figures.drawing import by_step, draw_curves, say
from dsabench.figures.style import Look
from dsabench.metrics import Metric, rows_of


def rows_with_values(figure: str, first: str, records: pd.DataFrame) -> list[Metric]:
    """The rows of a figure over training that have a finite value in `records`, `first` before the others."""
    return [row for row in rows_of(figure, first) if row.name in records and np.isfinite(records[row.name]).any()]


def row_labels(rows: Sequence[Metric], runs: pd.DataFrame) -> list[str]:
    """Labels of the y axes, with the unit below the name; `runs` say whether tokens or answers are counted."""
    scored = scored_unit(runs["task_accuracy"])
    return [row.per(scored).axis.replace(" (", "\n(") for row in rows]


def draw_metric(
    axes: Axes,
    runs: pd.DataFrame,
    records: pd.DataFrame,
    metric: Metric,
    style: Mapping[str, Look],
    nothing: str = "not recorded",
) -> dict[str, pd.DataFrame]:
    """Draw a metric of every variant among `runs` against the step, or say that there is nothing; the records of each
    variant that is drawn."""
    drawn = {}
    for i, (variant, look) in enumerate(style.items()):
        found = records[records["run_id"].isin(runs.loc[runs["variant"] == variant, "run_id"])]
        table = by_step(found, metric.name)
        if len(table):
            draw_curves(axes, None, table, look, i)
            drawn[variant] = found
    if not drawn:
        say(axes, nothing)
    return drawn


def limit(row: Sequence[Axes], metric: Metric) -> None:
    """The y axis of a row: a share from 0 to 1, a divergence from 0 on; others as they come."""
    if metric.unit.startswith("share of"):
        row[0].set_ylim(0, 1.03)
    elif metric.unit == "nats":
        row[0].set_ylim(bottom=0)
