"""sequence_length_comparison.png: the whole experiment in four panels."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dsabench.analysis.variants import label_variants
from dsabench.plots.style import (
    GREY,
    Look,
    display_name,
    length_axis,
    looks,
    new_figure,
    save_png,
    styled,
)

_WIDTH, _PANEL_WIDTH = 9.0, 3.7
"""Inches of the figure, and roughly of one panel's axes."""

_LEGEND_CHARACTERS = 120
"""Characters of legend entries that fit into the figure's width."""

_BASELINE: dict[str, Any] = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "zorder": 2}


def sequence_length_comparison(runs: pd.DataFrame, metrics: pd.DataFrame, path: Path) -> Path:
    """Draw final validation loss, accuracy and step time against length, and the longest length's curves.

    `runs` and `metrics` are what the store loads. Each finished run is a small point; the large ones are
    means over seeds, with bars of one standard deviation. Runs that are not averaged are counted in the
    caption. The same runs give the same bytes. Returns `path`; raises ResultsError when it cannot be written.
    """
    with styled():
        return save_png(_draw(label_variants(runs), metrics), path)


def _draw(labelled: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    done = labelled[labelled["finished"]].sort_values(["length", "variant", "seed"])
    # Looks are given to all variants of the sweep: one that did not finish leaves the others' as they are.
    every = looks(list(labelled.loc[labelled["attention"].notna(), "variant"]))
    style = {variant: look for variant, look in every.items() if variant in set(done["variant"])}
    handles = [_handle(look, _name(variant, done)) for variant, look in style.items()]
    handles.append(Line2D([], [], **_BASELINE, label="unigram baseline"))
    rows, columns = _legend_layout([str(handle.get_label()) for handle in handles])
    figure = new_figure(_WIDTH, 6.6 + 0.2 * rows)
    (loss, accuracy), (time, curves) = figure.subplots(2, 2)
    _against_length(loss, done, style, "val_loss", 1)
    _against_length(accuracy, done, style, "val_accuracy", 100)
    _against_length(time, done, style, "step_ms", 1)
    # A difference that is small for a training run must not fill the panel.
    _at_least(loss, 0.06)
    _at_least(accuracy, 0.5)
    _time_limits(time, done["step_ms"].dropna())
    off_scale = _baseline(loss, done)
    longest = done[done["length"] == done["length"].max()]
    drawn = _training_curves(curves, longest, metrics, style)
    of_length = f", length {int(longest['length'].iloc[0])}" if len(longest) else ""
    for axes, title, unit, better in (
        (loss, "Final validation loss", "nats per token", "lower"),
        (accuracy, "Final validation accuracy", "% of tokens", "higher"),
        (time, "Time of a training step", "ms", "lower"),
        (curves, f"Validation loss in training{of_length}", "nats per token", "lower"),
    ):
        axes.set_title(title)
        axes.set_title(f"{better} is better", loc="right", color=GREY, fontsize=8)
        axes.set_ylabel(unit)
        axes.set_xlabel("step" if axes is curves else "sequence length (tokens)")
        if axes.get_yscale() == "linear":
            # A number of ticks that follows the panel's size would change it again, and the layout never settle.
            axes.locator_params(axis="y", nbins=7)
    if off_scale is not None and not drawn:  # the baseline is drawn nowhere
        handles.pop()
    if handles and len(done):
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3.5)
    caption = _caption(labelled, done, off_scale or "")
    figure.supxlabel(caption, fontsize=8, color=GREY, linespacing=1.4)
    return figure


def _against_length(axes: Axes, done: pd.DataFrame, style: dict[str, Look], column: str, factor: float) -> None:
    """Single seeds as small points side by side, their mean as a large one, a standard deviation as a bar."""
    done = done[done[column].notna()]
    if done.empty:
        _say(axes, "no finished runs")
        return
    lengths = sorted({int(length) for length in done["length"]})
    gaps = np.diff(np.log2(lengths)) if len(lengths) > 1 else np.ones(1)
    # Octaves that one variant has at one length; two lengths that nearly coincide may overlap.
    slot = min(0.16, 0.7 * max(gaps.min(), np.median(gaps) / 2) / len(style))
    for i, (variant, look) in enumerate(style.items()):
        at, means = [], []
        for length in lengths:
            of_both = (done["variant"] == variant) & (done["length"] == length)
            values = factor * done.loc[of_both, column].to_numpy(dtype=float)
            n = len(values)
            if not n:
                continue
            x = math.log2(length) + (i - (len(style) - 1) / 2) * slot
            at.append(2**x)
            means.append(values.mean())
            if n == 1:
                continue
            spread = np.linspace(-0.32, 0.32, n) * slot
            points: dict[str, Any] = {"marker": look.marker, "color": look.colour, "markerfacecolor": "none"}
            axes.plot(2 ** (x + spread), values, **points, ls="", ms=3, mew=0.7, alpha=0.75, zorder=3)
            axes.errorbar(at[-1], means[-1], values.std(ddof=1), color=look.colour, capsize=3, lw=1.1, zorder=4)
        axes.plot(at, means, **_line(look), zorder=5)
    length_axis(axes, lengths, _PANEL_WIDTH, 0.15 + 0.5 * slot * len(style))


def _at_least(axes: Axes, span: float) -> None:
    low, high = axes.get_ylim()
    if high - low < span:
        axes.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def _time_limits(axes: Axes, times: pd.Series[float]) -> None:
    """From zero, so that heights compare as the times do; logarithmic where small times would vanish."""
    if len(times) and times.min() > 0 and times.max() / times.min() > 20:
        axes.set_yscale("log")
    elif len(times):
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])


def _baseline(axes: Axes, done: pd.DataFrame) -> str | None:
    """Draw the unigram baseline and return None; say where it is instead, if it would flatten the losses."""
    baseline = done.groupby("length")["unigram_loss"].mean().dropna()
    if baseline.empty:
        return ""
    low, high = axes.get_ylim()
    if baseline.max() - high <= high - low:
        if len(baseline) == 1:
            axes.axhline(baseline.iloc[0], **_BASELINE)
        else:
            axes.plot(baseline.index, baseline, **_BASELINE)
        return None
    first, last = f"{baseline.min():.2f}", f"{baseline.max():.2f}"
    value = first if first == last else f"{first} to {last}"
    return f"The unigram baseline, {value} nats per token, lies above the first panel."


def _training_curves(axes: Axes, done: pd.DataFrame, metrics: pd.DataFrame, style: dict[str, Look]) -> bool:
    """Mean over seeds as a line with markers, seeds as thin lines; True when the baseline is drawn too."""
    tables = _evaluations(done, metrics)
    if not tables:
        _say(axes, "no evaluations recorded")
        return False
    _curves(axes, tables, style)
    axes.locator_params(axis="x", nbins=6, integer=True)
    baseline = float(done["unigram_loss"].mean())
    drawn = any(bool((table >= baseline).to_numpy().any()) for table in tables.values())
    if drawn:
        axes.axhline(baseline, **_BASELINE)
    _magnify_the_end(axes, tables, style)
    return drawn


def _evaluations(done: pd.DataFrame, metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """variant -> validation losses, one row a step and one column a run."""
    if "val_loss" not in metrics:
        return {}
    wanted = metrics[(metrics["kind"] == "eval") & metrics["run_id"].isin(set(done["run_id"]))]
    records = pd.DataFrame(
        {
            "run_id": wanted["run_id"].astype(str),
            "step": wanted["step"].astype("float64"),
            "val_loss": pd.to_numeric(wanted["val_loss"], errors="coerce").astype("Float64").astype("float64"),
        }
    )
    records = records[np.isfinite(records["val_loss"])]
    variant_of = done.set_index("run_id")["variant"].to_dict()
    return {
        str(variant): group.pivot_table(index="step", columns="run_id", values="val_loss", aggfunc="last")
        for variant, group in records.groupby(records["run_id"].map(variant_of))
    }


def _curves(axes: Axes, tables: dict[str, pd.DataFrame], style: dict[str, Look]) -> None:
    for i, (variant, look) in enumerate(style.items()):
        if variant not in tables:
            continue
        table = tables[variant]
        if table.shape[1] > 1:
            axes.plot(table.index, table, color=look.colour, ls="-", lw=0.6, alpha=0.45, zorder=3)
        mean = table.dropna().mean(axis=1)  # where every seed was evaluated; elsewhere the mean would jump
        every = max(1, len(mean) // 8)
        axes.plot(mean.index, mean, **_line(look), markevery=(i % every, every), zorder=4)


def _magnify_the_end(axes: Axes, tables: dict[str, pd.DataFrame], style: dict[str, Look]) -> None:
    """The last quarter of the steps again, enlarged, where the panel's upper right has nothing in it."""
    joined = pd.concat(list(tables.values()), axis=1)
    steps, values = joined.index.to_numpy(dtype=float), joined.to_numpy(dtype=float)
    first, last = steps.min(), steps.max()
    end = steps >= last - 0.25 * (last - first)
    height = np.nanmax(values) - np.nanmin(values)
    below_inset = np.nanmax(values[steps >= first + 0.3 * (last - first)]) <= np.nanmin(values) + 0.4 * height
    worth_it = np.nanmax(values[end]) - np.nanmin(values[end]) <= 0.2 * height
    if end.sum() < 2 or not below_inset or not worth_it:
        return
    inset = axes.inset_axes((0.47, 0.63, 0.5, 0.28))
    _curves(inset, {variant: table[table.index >= steps[end].min()] for variant, table in tables.items()}, style)
    inset.set_title("the last quarter of the steps", fontsize=8, color=GREY, pad=3)
    inset.tick_params(labelsize=7.5)
    inset.margins(0.06, 0.2)
    inset.locator_params(nbins=4)


def _caption(labelled: pd.DataFrame, done: pd.DataFrame, off_scale: str) -> str:
    counts = done.groupby(["length", "variant"]).size()
    lines = []
    if len(counts):
        low, high = counts.min(), counts.max()
        seeds = f"{low} seed{'s' if high > 1 else ''}" if low == high else f"{low} to {high} seeds"
        points = "Small points and thin lines: single seeds; large points: means; bars: +-1 standard deviation."
        lines.append(f"n = {seeds}. {points}" if high > 1 else "n = 1 seed: the spread is not known.")
    lines.append(off_scale)
    left_out = len(labelled) - len(done)
    if left_out:
        lines.append(f"Not shown: {left_out} of {len(labelled)} runs, unfinished or superseded.")
    return "\n".join(line for line in lines if line)


def _name(variant: str, done: pd.DataFrame) -> str:
    leak = done.loc[done["variant"] == variant, "leak"].any()
    return "\n".join(textwrap.wrap(display_name(variant) + (" [LEAK]" if leak else ""), 80))


def _legend_layout(names: list[str]) -> tuple[int, int]:
    """(lines of text, columns) of a legend whose columns are as wide as its longest entry."""
    widest = max(len(line) for name in names for line in name.split("\n"))
    columns = max(1, min(len(names), _LEGEND_CHARACTERS // (widest + 12)))
    lines = max(name.count("\n") + 1 for name in names)
    return lines * math.ceil(len(names) / columns), columns


def _line(look: Look) -> dict[str, Any]:
    return {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": look.line,
        "linewidth": 1.4,
        "markersize": 6.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def _handle(look: Look, name: str) -> Line2D:
    return Line2D([], [], **_line(look), label=name)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])
