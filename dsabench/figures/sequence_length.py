"""The figure of the whole experiment in four panels."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from dsabench.analysis.pairing import machines
from dsabench.analysis.variants import display_name, label_variants, scored_unit
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import (
    LEAK,
    MANY,
    REFERENCE,
    against_length,
    at_least,
    by_step,
    draw_curves,
    handle,
    legend_layout,
    legend_name,
    panel_title,
    plain_log_ticks,
    say,
    seeds_of,
)
from dsabench.figures.sheet import pages, too_many
from dsabench.figures.style import GREY, PAPER, Look, looks, new_figure, save_png, styled
from dsabench.metrics import METRICS

_WIDTH, _PANEL_WIDTH = 9.0, 3.7
"""Inches of the figure, and roughly of one panel's axes."""

_PANELS = ("val_loss", "val_accuracy", "step_ms", "unigram_loss")
"""The metrics of the four panels, and the baseline."""

_LEGEND_CHARACTERS = 120
"""Characters of legend entries that fit into the figure's width."""


def four_panels(data: FigureData) -> Drawn | str:
    """Final validation loss, accuracy and step time against length, and the longest length's curves."""
    if data.done.empty:
        return "no run has finished with a finite validation loss"
    kept, notes = too_many(pages(data.done.assign(panels=1), data.pages, facet="panels"))
    figures = []
    for page in kept:
        of_page = data.runs[data.runs["variant"].isin(list(page.style))]
        figures.append(_draw(of_page, data.curves.frame, page.style, page.said))
    return Drawn(figures, notes)


def sequence_length_comparison(runs: pd.DataFrame, metrics: pd.DataFrame, path: Path) -> Path:
    """Draw the four panels of `runs`, all variants on one page, to `path`.

    `runs` and `metrics` are what the store loads. Each finished run is a small point; the large ones are
    means over seeds, with bars of one standard deviation. Runs that are not averaged are counted in the
    caption. The same runs give the same bytes. Returns `path`; raises ResultsError when it cannot be written.
    """
    with styled():
        return save_png(_draw(label_variants(runs), metrics), path)


def _draw(
    labelled: pd.DataFrame, metrics: pd.DataFrame, every: dict[str, Look] | None = None, said: str = ""
) -> Figure:
    done = labelled[labelled["finished"]].sort_values(["length", "variant", "seed"])
    if every is None:
        # Looks are given to all variants of the sweep: one that did not finish leaves the others' as they are.
        every = looks(list(labelled.loc[labelled["attention"].notna(), "variant"]))
    style = {variant: look for variant, look in every.items() if variant in set(done["variant"])}
    handles = [handle(look, legend_name(variant, done)) for variant, look in style.items()]
    scored = scored_unit(done["task_accuracy"])
    val_loss, val_accuracy, step_ms, unigram = (METRICS[name].per(scored) for name in _PANELS)
    baseline = unigram.words
    handles.append(Line2D([], [], **REFERENCE, label=baseline))
    rows, columns = legend_layout([str(entry.get_label()) for entry in handles], _LEGEND_CHARACTERS)
    figure = new_figure(_WIDTH, 6.6 + 0.2 * rows)
    (loss, accuracy), (time, curves) = figure.subplots(2, 2)
    timed, elsewhere = _one_machine(done)
    against_length(loss, done, style, "val_loss", _PANEL_WIDTH)
    against_length(accuracy, done, style, "val_accuracy", _PANEL_WIDTH, factor=100)
    against_length(time, timed, style, "step_ms", _PANEL_WIDTH)
    at_least(loss, 0.06)
    at_least(accuracy, 0.5)
    _time_limits(time, timed["step_ms"].dropna())
    off_scale = _baseline(loss, done, baseline, unigram.unit)
    longest = done[done["length"] == done["length"].max()]
    drawn = _training_curves(curves, longest, metrics, style)
    of_length = f", L = {int(longest['length'].iloc[0])}" if len(longest) else ""
    for axes, metric, title in (
        (loss, val_loss, f"Final {val_loss.words}"),
        (accuracy, val_accuracy, f"Final {val_accuracy.words}"),
        (time, step_ms, step_ms.words.capitalize()),
        (curves, val_loss, f"{val_loss.words.capitalize()}{of_length}"),
    ):
        panel_title(axes, title, metric.better, longest if axes is curves else done)
        axes.set_ylabel(metric.unit.replace("share of", "% of"))
        axes.set_xlabel("step" if axes is curves else "sequence length (tokens)")
        if axes.get_yscale() == "linear":
            # A number of ticks that follows the panel's size would change it again, and the layout never settle.
            axes.locator_params(axis="y", nbins=7)
    if off_scale is not None and not drawn:  # the baseline is drawn nowhere
        handles.pop()
    if handles and len(done):
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3.5)
    caption = _caption(labelled, done, [off_scale or "", elsewhere, said])
    figure.supxlabel(caption, fontsize=8, color=GREY, linespacing=1.4)
    return figure


def _one_machine(done: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The runs of the machine that timed most of them, and a sentence on the others: their times are no average."""
    where = machines(done)
    counts = where.value_counts()
    if len(counts) < 2:
        return done, ""
    name = min(counts[counts == counts.max()].index)
    rest = int((where != name).sum())
    return done[where == name], f"Times: on {name}; those of {rest} runs on others are not in this panel."


def _time_limits(axes: Axes, times: pd.Series[float]) -> None:
    """From zero, so that heights compare as the times do; logarithmic where small times would vanish."""
    if len(times) and times.min() > 0 and times.max() / times.min() > 20:
        axes.set_yscale("log")
        plain_log_ticks(axes, times.min(), times.max())
    elif len(times):
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])


def _baseline(axes: Axes, done: pd.DataFrame, name: str, unit: str) -> str | None:
    """Draw the baseline and return None; say where it is instead, if it would flatten the losses."""
    baseline = done.groupby("length")["unigram_loss"].mean().dropna()
    if baseline.empty:
        return ""
    low, high = axes.get_ylim()
    if baseline.max() - high <= high - low:
        if len(baseline) == 1:
            axes.axhline(baseline.iloc[0], **REFERENCE)
        else:
            axes.plot(baseline.index, baseline, **REFERENCE)
        return None
    first, last = f"{baseline.min():.2f}", f"{baseline.max():.2f}"
    value = first if first == last else f"{first} to {last}"
    return f"{name[0].upper()}{name[1:]}, {value} {unit}, lies above the first panel."


def _training_curves(axes: Axes, done: pd.DataFrame, metrics: pd.DataFrame, style: dict[str, Look]) -> bool:
    """Mean over seeds as a line with markers, seeds as thin lines; True when the baseline is drawn too."""
    tables = _evaluations(done, metrics)
    if not tables:
        say(axes, "no evaluations recorded")
        return False
    _curves(axes, tables, style)
    axes.locator_params(axis="x", nbins=6, integer=True)
    baseline = float(done["unigram_loss"].mean())
    drawn = any(bool((table >= baseline).to_numpy().any()) for table in tables.values())
    if drawn:
        axes.axhline(baseline, **REFERENCE)
    _magnify_the_end(axes, tables, style)
    return drawn


def _evaluations(done: pd.DataFrame, metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """variant -> validation losses, one row a step and one column a run."""
    if "val_loss" not in metrics:
        return {}
    wanted = metrics[metrics["run_id"].isin(set(done["run_id"]))]
    if "kind" in wanted:
        wanted = wanted[wanted["kind"] == "eval"]
    records = pd.DataFrame(
        {
            "run_id": wanted["run_id"].astype(str),
            "step": wanted["step"].astype("float64"),
            "val_loss": pd.to_numeric(wanted["val_loss"], errors="coerce").astype("Float64").astype("float64"),
        }
    )
    variant_of = done.set_index("run_id")["variant"].to_dict()
    tables = {
        str(variant): by_step(group, "val_loss")
        for variant, group in records.groupby(records["run_id"].map(variant_of))
    }
    return {variant: table for variant, table in tables.items() if len(table)}


def _curves(axes: Axes, tables: dict[str, pd.DataFrame], style: dict[str, Look]) -> None:
    for i, (variant, look) in enumerate(style.items()):
        if variant in tables:
            draw_curves(axes, None, tables[variant], look, i)


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
    # What lies below shows through neither the inset, whose own ground is left out where a file's is, nor its labels.
    inset.add_patch(Rectangle((0, 0), 1, 1, transform=inset.transAxes, facecolor=PAPER, zorder=-1))
    for label in (*inset.get_xticklabels(), *inset.get_yticklabels()):
        label.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 0.5})


def _other_seeds(done: pd.DataFrame) -> str:
    """Where variants of one setting have different seeds their means differ by these, too."""
    found = []
    for _, group in done.groupby(["length", "setting"]):
        seeds = {str(variant): frozenset(runs["seed"]) for variant, runs in group.groupby("variant")}
        if len(set(seeds.values())) > 1:
            few = min(seeds, key=lambda variant: (len(seeds[variant]), variant))
            every = len(frozenset.union(*seeds.values()))
            lacks = f"{display_name(few)} lacks {every - len(seeds[few])} of {every}"
            found.append(f"L = {int(group['length'].iloc[0])} ({lacks})")
    if not found:
        return ""
    where = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
    return f"Means of different seeds at {where}: dsabench compare takes differences of the same seeds."


def _caption(labelled: pd.DataFrame, done: pd.DataFrame, more: list[str]) -> str:
    lines = []
    if seeds := seeds_of(done):
        several = int(done.groupby(["length", "variant"]).size().max())
        thin = "Small points and thin lines: single seeds" if several <= MANY else "Small points: seeds; bands: range"
        points = f"{thin}; large points: means; bars: +-1 standard deviation."
        lines.append(f"{seeds}. {points}" if several > 1 else f"{seeds}: the spread is not known.")
    lines += [_other_seeds(done), *more]
    left_out = len(labelled) - len(done)
    if left_out:
        lines.append(f"Not shown: {left_out} of {len(labelled)} runs, unfinished or superseded.")
    if done["leak"].any():
        lines.append(LEAK)
    return "\n".join(text for line in lines if line for text in textwrap.wrap(line, 140))
