"""Quality against sparsity: what is lost, and what attention mass is kept, as k / L shrinks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dsabench.analysis.variants import display_name, scored_unit
from dsabench.figures.data import Drawn, FigureData, families, paginate
from dsabench.figures.drawing import REFERENCE, at_least, line, no_difference, panel_title, points_of, say
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.figures.style import GREY, Look
from dsabench.metrics import METRICS

_MARGIN: dict[str, Any] = {"color": GREY, "linestyle": (0, (5, 2)), "linewidth": 1.0, "zorder": 2}


def quality_by_sparsity(data: FigureData) -> Drawn | str:
    """Difference to the baseline (or loss) and mass recall beside its chance, against k / L."""
    runs = data.runs.assign(variant=families(data.runs), share=data.runs["k"] / data.runs["length"])
    runs = runs.loc[data.done.index, [*data.done, "share"]].astype({"length": int, "seed": int})
    differences = pd.Series(
        (data.pairs["a.val_loss"] - data.pairs["b.val_loss"]).to_numpy() if len(data.pairs) else [],
        index=data.pairs["a.run_id"],
        dtype=float,
    )
    runs["difference"] = runs["run_id"].map(differences)
    chosen = runs[runs["share"].notna()]
    several = chosen.groupby(["length", "variant"])["share"].transform("nunique") > 1
    chosen = chosen[several]
    if chosen.empty:
        return "needs at least two k/L of one attention at one length; try --top-k-ratios 0.1 0.25 0.5"
    styles = paginate(chosen, ())
    if len(chosen["variant"].unique()) == 1:  # the one family looks as its variants do: not like dense
        styles = [dict(styles[0])]
    kept, notes = too_many(pages(chosen, styles))
    paired = bool(chosen["difference"].notna().any())
    if paired and (alone := int(chosen["difference"].isna().sum())):
        notes.append(f"{alone} of {len(chosen)} runs have no {data.baseline} run of their length and seed: not shown")
    if left := sorted(set(runs.loc[runs["share"].notna(), "length"]) - set(chosen["length"])):
        notes.append(f"not shown: length {', '.join(map(str, left))}, of which runs have one k/L only")
    return Drawn([_page(page, data, paired) for page in kept], notes)


def _page(page: Page, data: FigureData, paired: bool) -> Figure:
    base = display_name(data.baseline or "dense")
    margin = data.scope.verdict.margin
    recall = page.runs["mass_recall"].notna().any()
    extra = []
    if paired:
        extra += [
            no_difference(base),
            Line2D([], [], **_MARGIN, label=f"margin, {margin:g} nats"),
        ]
    if recall:
        extra.append(Line2D([], [], color=GREY, marker="_", ls=":", lw=1.2, label="chance: as many random tokens"))
    counted = page.runs.assign(variant=page.runs["variant"] + " " + page.runs["share"].astype(str))
    caption = [
        f"Final validation loss minus {base} of the same seed." if paired else "Final validation loss.",
        points_of(counted, "+-1 standard deviation"),
        f"{METRICS['mass_recall'].caption} Means over seeds." if recall else "",
    ]
    rows = 2 if recall else 1
    figure, panels = empty_page(page, rows, extra, caption)
    label = "k / L (share of the window kept)"
    loss, mass = METRICS["val_loss"].per(scored_unit(page.runs["task_accuracy"])), METRICS["mass_recall"]
    unit = f"{loss.words}{f' minus {base}' if paired else ''}\n({loss.unit})"
    for axes, row, column in outer_labels(panels, label, [unit, f"{mass.words}\n({mass.unit})"]):
        mine = page.of(page.columns[column])
        title = f"L = {page.columns[column]}" if row == 0 else ""
        if row == 0:
            _losses(axes, mine, page.style, "difference" if paired else "val_loss")
            if paired:
                axes.axhline(0, **REFERENCE)
                axes.axhline(margin, **_MARGIN)
            panel_title(axes, title, loss.better, mine)
        else:
            _recall(axes, mine, page.style)
            panel_title(axes, title, mass.better, mine)
        axes.set_xlim(0, min(1.02, 1.15 * page.runs["share"].max()))
    at_least(panels[0][0], 2 * margin)
    few_ticks(panels)
    return figure


def _losses(axes: Axes, runs: pd.DataFrame, style: dict[str, Look], column: str) -> None:
    """Seeds, means and bars of every family; families stand a little beside each other."""
    runs = runs[runs[column].notna()]
    if runs.empty:
        say(axes, "no pairs")
    slot = 0.024 / len(style)
    for i, (variant, look) in enumerate(style.items()):
        by_share = runs[runs["variant"] == variant].groupby("share")[column]
        if not len(by_share):
            continue
        shift = (i - (len(style) - 1) / 2) * slot
        for share, values in by_share:
            spread = 0.45 * slot * np.linspace(-1, 1, len(values)) if len(values) > 1 else np.zeros(1)
            points: dict[str, Any] = {"marker": look.marker, "color": look.colour, "markerfacecolor": "none"}
            at = float(str(share)) + shift + spread
            axes.plot(at, values, **points, ls="", ms=3, mew=0.7, alpha=0.75, zorder=3)
        means = by_share.mean()
        x = means.index.to_numpy(dtype=float) + shift
        axes.errorbar(x, means, by_share.std(), color=look.colour, ls="none", capsize=3, lw=1.1, zorder=4)
        axes.plot(x, means, **line(look), zorder=5)
    for share, values in runs[runs["leak"]].groupby("share")[column]:
        point = (float(str(share)), float(values.mean()))
        axes.annotate("LEAK", point, (5, -3), textcoords="offset points", rotation=90, va="bottom", fontsize=7)


def _recall(axes: Axes, runs: pd.DataFrame, style: dict[str, Look]) -> None:
    for variant, look in style.items():
        mine = runs[(runs["variant"] == variant) & runs["mass_recall"].notna()]
        means = mine.groupby("share")["mass_recall"].mean()
        axes.plot(means.index, means, **line(look), zorder=5)
    chance = runs.groupby("share")["mass_recall_chance"].mean().dropna()
    axes.plot(chance.index, chance, color=GREY, marker="_", ls=":", lw=1.2, zorder=3)
    axes.set_ylim(0, 1.03)
