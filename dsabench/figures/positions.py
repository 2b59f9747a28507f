"""Loss by position in the window, and the difference to the baseline: a look-ahead leak shows there first.

A panel a length; of a ladder, a panel a rung, so that one sees on which of them an advantage goes away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsabench.analysis.rungs import RUNG, rungs_of
from dsabench.analysis.variants import display_name, scored_unit, within
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import REFERENCE, after_training, at_least, line, no_difference, panel_title
from dsabench.figures.sheet import Page, empty_page, few_ticks, outer_labels, pages, too_many
from dsabench.figures.style import Look, length_axis, looks
from dsabench.metrics import METRICS

GROUPS = 20
"""Points of a curve: single positions at the start of what is scored, wider and wider groups after it."""


def loss_by_position(data: FigureData) -> Drawn | str:
    """Final loss by position, mean over seeds, and its paired difference to the baseline."""
    found = data.evaluations()
    found = found[found["loss_by_position"].notna()]
    losses = dict(zip(found["run_id"], (np.asarray(v, float) for v in found["loss_by_position"]), strict=True))
    runs = data.done[data.done["run_id"].isin(list(losses))]
    if runs.empty:
        return "no finished run recorded its loss by position; train some again, dsabench sweep records it"
    bins = runs["run_id"].map(lambda run: len(losses[run]))
    runs = runs[bins == bins.groupby(runs["length"]).transform("max")]  # of one length, runs have the same bins
    notes = []
    if missing := len(data.done) - len(runs):
        notes.append(f"{missing} of {len(data.done)} runs recorded no loss by position, or other bins: not shown")
    if rungs_of(runs):
        runs, pairs = _by_rung(runs), _by_rung(data.pairs)
        kept, more = too_many(pages(runs, [looks(list(runs["variant"]))], facet=RUNG))
        kept = [
            replace(page, style={v: page.style[v] for v in page.style if (page.runs["variant"] == v).any()})
            for page in kept
        ]
    else:
        pairs = data.pairs
        kept, more = too_many(pages(runs, data.pages))
    shown = {run: losses[run] for run in runs["run_id"]}
    return Drawn([_page(page, shown, pairs, data.baseline) for page in kept], notes + more)


def _by_rung(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs or pairs whose variants are called alike on every rung, as the panels' titles name it; a rung that has
    several lengths is a panel for each."""
    rung, several = frame["setting"], frame["length"].nunique() > 1
    lengths = frame["length"].astype(int).astype(str)
    short = [within(str(v), str(s)) for v, s in zip(frame["variant"], rung, strict=True)]
    return frame.assign(variant=short, **{RUNG: rung + ", L = " + lengths if several else rung})


def grouped(values: np.ndarray, length: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(position of each group, its mean loss) of the losses of equal bins of positions 1..length, from bin `first` on.

    The last axis of `values` is the bins; one of runs may stand before it. The position is the geometric mean of a
    group's first and last. Bins are those of numpy.array_split: the first length % n hold a position more. A bin in
    which nothing is scored is NaN, and so is a group of such bins.
    """
    n = values.shape[-1]
    sizes = np.full(n, length // n) + (np.arange(n) < length % n)
    ends = np.cumsum(sizes)
    starts = np.arange(first, n)
    if n - first > GROUPS:
        starts = first + np.unique(np.floor(np.geomspace(1, n - first + 1, GROUPS + 1) + 1e-9).astype(int) - 1)[:-1]
    known = np.where(np.isnan(values), 0, sizes)
    total = np.add.reduceat(np.nan_to_num(values) * known, starts, axis=-1)
    weight = np.add.reduceat(known, starts, axis=-1)
    mean = np.where(weight > 0, total / np.maximum(weight, 1), np.nan)
    last = ends[np.append(starts[1:], n) - 1]
    return np.sqrt((ends[starts] - sizes[starts] + 1.0) * last), mean


def _page(page: Page, losses: dict[str, np.ndarray], pairs: pd.DataFrame, baseline: str | None) -> Figure:
    pairs = pairs[pairs["a.run_id"].isin(page.runs["run_id"]) & pairs["b.run_id"].isin(list(losses))]
    pairs = pairs[pairs[page.facet].isin(page.columns)]
    base = display_name(baseline) if baseline else ""
    extra = [no_difference(base)] if len(pairs) else []
    ended, bars = after_training(page.runs)
    caption = [
        ended,
        "Points average a group of positions that widens to the right (the check of losses has eight equal parts).",
        f"{page.parts[1].capitalize()}: difference to {base} of the same seed{bars}." if len(pairs) else "",
        _largest(pairs, losses, page.facet),
        "A look-ahead leak is a large advantage, at positions up to k (marks at the foot"
        f"{', of a leak a line' if page.runs['leak'].any() else ''}) above all."
        if any(
            (runs["k"] >= _first_position([losses[run] for run in runs["run_id"]], int(runs["length"].iloc[0]))).any()
            for _, runs in page.runs.groupby("length")
        )
        else "",
    ]
    rows = 2 if len(pairs) else 1
    figure, panels = empty_page(page, rows, extra, caption)
    unit = METRICS["val_loss"].per(scored_unit(page.runs["task_accuracy"])).unit
    units = [f"loss ({unit})", f"minus {base} ({unit})"]
    for axes, row, column in outer_labels(panels, "position in the window (1 = first)", units):
        value = page.columns[column]
        mine = page.of(value)
        length = int(mine["length"].iloc[0])
        first = _first_position([losses[run] for run in mine["run_id"]], length)
        if row == 0:
            _losses(axes, mine, losses, page.style)
        else:
            _differences(axes, pairs[pairs[page.facet] == value], losses, page.style)
        _mark_k(axes, mine[mine["k"] >= first], page.style)
        if _late(first, length):
            axes.set_xlim(first - 1, length + 1)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        else:
            length_axis(axes, [*(2**i for i in range(0, int(np.log2(length)) + 1, 2)), length], 2.0, 0.1)
        if page.facet == RUNG:
            leak = "LEAK; " if mine["leak"].any() else ""  # beside a rung's name there is no room
            axes.set_title((f"{value}\n" if row == 0 else "") + f"{leak}lower is better", fontsize=8)
        else:
            panel_title(axes, f"L = {length}" if row == 0 else "", "lower", mine)
    at_least(panels[0][0], 0.2)
    if rows == 2:
        at_least(panels[1][0], 0.1)
    few_ticks(panels)
    return figure


def _largest(pairs: pd.DataFrame, losses: dict[str, np.ndarray], facet: str) -> str:
    """The lowest and the highest mean difference that is drawn: what a leak would show is the lowest."""
    found = []
    for _, group in pairs.groupby(["variant", facet]):
        variant, panel = str(group["variant"].iloc[0]), group[facet].iloc[0]
        where = f"rung {panel}" if facet == RUNG else f"L = {int(panel)}"
        x, ours, theirs = _sides(group, losses)
        mean = (ours - theirs).mean(axis=0)
        for i in (int(mean.argmin()), int(mean.argmax())):
            found.append((float(mean[i]), f"{display_name(variant)}, {where}, position {x[i]:.0f}"))
    if not found:
        return ""
    (low, here), (high, there) = min(found), max(found)
    return f"It lies between {low:+.3f} ({here}) and {high:+.3f} nats ({there})."


def _losses(axes: Axes, runs: pd.DataFrame, losses: dict[str, np.ndarray], style: dict[str, Look]) -> None:
    for i, (variant, look) in enumerate(style.items()):
        mine = runs[runs["variant"] == variant]
        if len(mine):
            x, values = _stacked([losses[run] for run in mine["run_id"]], int(mine["length"].iloc[0]))
            axes.plot(x, values.mean(axis=0), **_small(look), markevery=_some(i, len(x)), zorder=4)


def _differences(axes: Axes, pairs: pd.DataFrame, losses: dict[str, np.ndarray], style: dict[str, Look]) -> None:
    axes.axhline(0, **REFERENCE)
    for i, (variant, look) in enumerate(style.items()):
        mine = pairs[pairs["variant"] == variant]
        if mine.empty:
            continue
        at, ours, theirs = _sides(mine, losses)
        difference = ours - theirs
        if len(difference) > 1:
            spread = difference.std(axis=0, ddof=1)
            aside = i - len(style) / 2  # so that bars do not cover each other
            late = _late(at[0], int(mine["length"].iloc[0]))
            x = at + 0.01 * (at[-1] - at[0]) * aside if late else at * 2 ** (0.03 * aside)
            axes.errorbar(x, difference.mean(axis=0), spread, color=look.colour, ls="none", lw=0.8, alpha=0.7, zorder=3)
        axes.plot(at, difference.mean(axis=0), **_small(look), markevery=_some(i, len(at)), zorder=4)


def _sides(pairs: pd.DataFrame, losses: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, and of both sides of pairs of one length a row of losses for each."""
    length = int(pairs["length"].iloc[0])
    at, both = _stacked([losses[run] for side in "ab" for run in pairs[f"{side}.run_id"]], length)
    return at, both[: len(pairs)], both[len(pairs) :]


def _stacked(several: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions, and a row of losses for each run of one length; of the groups in which all of them are scored."""
    first = min(_first_bin(values) for values in several)
    at, rows = grouped(np.array(several), length, first)
    everywhere = np.isfinite(rows).all(axis=0)
    return at[everywhere], rows[:, everywhere]


def _first_bin(values: np.ndarray) -> int:
    """The first bin in which something is scored: 0 of a text; of a task often past the middle."""
    return int(np.isfinite(values).argmax())


def _first_position(several: list[np.ndarray], length: int) -> int:
    """The first position, from 1 on, of the first bin in which any of the runs is scored."""
    return 1 + min(_first_bin(values) * length // len(values) for values in several)


def _late(first: float, length: int) -> bool:
    """Whether what is scored begins so late in the window that a logarithmic axis would squeeze it."""
    return first > length / 4


def _some(i: int, n: int) -> tuple[int, int]:
    """Every third of n points from i on, but all where they are few."""
    step = 3 if n > 3 else 1
    return i % step, step


def _small(look: Look) -> dict[str, Any]:
    return line(look) | {"markersize": 4.5, "linewidth": 1.2}


def _mark_k(axes: Axes, runs: pd.DataFrame, style: dict[str, Look]) -> None:
    foot = axes.get_xaxis_transform()
    for variant, look in style.items():
        mine = runs[(runs["variant"] == variant) & (runs["k"] < runs["length"])]
        for k in sorted(mine["k"].unique()):
            if mine["leak"].any():  # where its advantage ends
                axes.axvline(k, color=look.colour, lw=0.7, ls=(0, (2, 2)), zorder=1.5)
            axes.plot([k], [0.03], transform=foot, marker=look.marker, mfc="none", mec=look.colour, ms=5, ls="none")
