"""The figure of conversions: loss over tokens of parents, of their children, and of runs from scratch beside them.

Tokens are all that the weights have seen: a child's curve begins where its parent's ended. Losses of seeds differ by
their parents', so all are drawn again as the loss minus that of the child of the same parent that goes on with its
attention; where there is none, minus the parent's own loss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from dsabench.analysis.children import LOSS, PARENT, STEPS
from dsabench.analysis.variants import display_name, scored_unit, variant_order
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import LEAK, REFERENCE, balanced, panel_title
from dsabench.figures.end_labels import EndLabel, label_ends
from dsabench.figures.sheet import few_ticks
from dsabench.figures.style import COLOURS, GREY, GRID, new_figure
from dsabench.metrics import METRICS
from dsabench.plain import count
from dsabench.store import load_curves, load_runs

MOST_LINES = 12
"""Lines on one page beside the parent's: more labels would not fit beside a panel."""

_SETTLED = 0.25
"""Share of a child's own training after which its losses set the scale of the second panel."""

_NAMES = {0: "", 3: "thousand ", 6: "million ", 9: "billion ", 12: "trillion "}


_WIDE = 5.0
"""Margins beyond which the second panel's scale becomes logarithmic outside the margin: else a control that fails would
leave no room for the differences that the question is about."""


class _Line(NamedTuple):
    """What is drawn as one line: the runs of all seeds."""

    name: str
    colour: str
    dashes: Any
    runs: pd.DataFrame
    converted: bool
    """Whether it starts from a trained model."""


def loss_by_tokens(data: FigureData) -> Drawn | str:
    """Validation loss against all tokens, the parents' included, and minus that of dense continued."""
    done = _with_past(data)
    if not done["past"].notna().any():
        return "no finished run starts from a trained model (the field start; --config convert_quick)"
    parents = _parents(data, done)
    curves = _curves(data, done, parents)
    figures = []
    for length in sorted(done.loc[done["past"].notna(), "length"].unique()):
        mine, above = done[done["length"] == length], parents[parents["length"] == length]
        drawn = _lines(mine, set(above["attention"]))
        base = _baseline(mine, above, curves)
        parts = [drawn[i : i + MOST_LINES] for i in range(0, len(drawn), MOST_LINES)]
        figures += [
            _page(int(length), part, above, mine, curves, base, data.scope.verdict.margin, (i, len(parts)))
            for i, part in enumerate(parts, 1)
        ]
    return Drawn(figures)


def _with_past(data: FigureData) -> pd.DataFrame:
    """The finished runs, each once, with `past`: the tokens behind the model that it starts from; NaN from scratch."""
    names = [name for name in data.runs if "." not in str(name)]
    done = data.runs[data.runs["finished"]].drop_duplicates("run_id").reindex(columns=[*names, PARENT, STEPS, LOSS])
    done["a_step"] = done["tokens"].astype(float) / done["steps"].astype(float)
    done["past"] = pd.to_numeric(done[STEPS], errors="coerce").astype("Float64").astype("float64") * done["a_step"]
    return done.sort_values(["variant", "seed"], kind="stable")


def _parents(data: FigureData, done: pd.DataFrame) -> pd.DataFrame:
    """The runs of the store that those of `done` start from, with the same columns."""
    there = load_runs(data.scope.store)
    found = there[there["run_id"].isin(done[PARENT].dropna()) & (there["status"] == "done")]
    found = found.reindex(columns=["run_id", "attention", "length", "seed", "tokens", "steps", "val_loss", STEPS])
    found["a_step"] = found["tokens"].astype(float) / found["steps"].astype(float)
    found["past"] = pd.to_numeric(found[STEPS], errors="coerce").astype("Float64").astype("float64") * found["a_step"]
    return found


def _curves(data: FigureData, done: pd.DataFrame, parents: pd.DataFrame) -> pd.DataFrame:
    """run_id, seed, tokens (all that the weights have seen), loss, and `since`: the loss minus the parent's own, of the
    same length and seed. Without the losses of drawn weights, near ln V, which would flatten the rest."""
    runs = pd.concat([done, parents[~parents["run_id"].isin(done["run_id"])]], ignore_index=True)
    own = dict(zip(parents["run_id"], parents["val_loss"].astype(float), strict=True))
    of_seed = {
        (run["length"], run["seed"]): own.get(run[PARENT], run.get(LOSS, np.nan))
        for run in done[done["past"].notna()].to_dict("records")
    }
    records = load_curves(data.scope.store, list(runs["run_id"]), columns=["val_loss"]).frame
    found: pd.DataFrame = records.merge(runs[["run_id", "length", "seed", "a_step", "past"]], on="run_id")
    found = found[np.isfinite(found["val_loss"]) & ((found["step"] > 0) | found["past"].notna())]
    found = found.drop_duplicates(["run_id", "step"], keep="last")
    found["tokens"] = found["past"].fillna(0.0) + found["step"] * found["a_step"]
    keys = zip(found["length"], found["seed"], strict=True)
    found["since"] = found["val_loss"] - np.array([float(of_seed.get(key, np.nan)) for key in keys])
    return found


def _baseline(runs: pd.DataFrame, parents: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """tokens and loss by seed of the children that go on with their parent's attention; none where a seed lacks one."""
    children = runs[runs["past"].notna()]
    own = dict(zip(parents["run_id"], parents["attention"], strict=True))
    on = children[children["attention"] == children[PARENT].map(own)]
    found = curves[curves["run_id"].isin(on["run_id"])]
    table: pd.DataFrame = found.groupby(["seed", "tokens"])["val_loss"].mean().reset_index()
    return table if set(table["seed"]) >= set(children["seed"]) else table.iloc[:0]


def _lines(runs: pd.DataFrame, parents: set[str]) -> list[_Line]:
    """A line for each variant and setting. An attention has one colour; runs from scratch are dashed. parents: the
    parents' attentions, which go on in some children."""
    first = next(iter(runs.loc[runs["past"].notna(), "setting"]), "")
    alone = runs.loc[runs["past"].isna(), "setting"].nunique() == 1
    groups = []
    for (variant, setting), mine in runs.groupby(["variant", "setting"], sort=False):
        name = display_name(str(variant), str(setting)).replace("indexer.", "")
        converted = bool(mine["past"].notna().all())
        apart = "" if setting == first else "from scratch" if alone and not converted else _said(str(setting))
        name += " continued" if converted and mine["attention"].iloc[0] in parents else ""
        leak = " [LEAK]" if mine["leak"].any() else ""
        groups.append((not converted, variant_order(str(variant)), f"{name}{', ' * bool(apart)}{apart}{leak}", mine))
    groups.sort(key=lambda group: group[:3])
    colours: dict[str, str] = {}
    found = []
    for scratch, _, name, mine in groups:
        key = str(mine["attention"].iloc[0]) if scratch else name
        kin = [known for known in colours if re.split("[ ,]", known)[0].lower() == key.lower()]
        place = kin[0] if scratch and kin else name
        colour = colours.setdefault(place, COLOURS[len(colours) % len(COLOURS)])
        again = list(colours).index(place) // len(COLOURS)
        dashes = (0, (4, 1.6)) if scratch else ("-", (0, (6, 1.5, 1, 1.5)))[min(1, again)]
        found.append(_Line(name, colour, dashes, mine, not scratch))
    return found


def _said(setting: str) -> str:
    """A setting as a label has it: of a rung its name alone."""
    number, space, name = setting.partition(" ")
    return name if space and number.isdigit() else setting


def _page(
    length: int,
    drawn: Sequence[_Line],
    parents: pd.DataFrame,
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    base: pd.DataFrame,
    margin: float,
    page: tuple[int, int],
) -> Figure:
    children = runs[runs["past"].notna()]
    mine = curves[curves["run_id"].isin([*(run for line in drawn for run in line.runs["run_id"]), *parents["run_id"]])]
    power = 3 * int(np.log10(max(1.0, mine["tokens"].max())) // 3)
    if len(base):
        mine = mine.assign(since=mine["val_loss"] - _at(base, mine))
    mine = mine.assign(tokens=mine["tokens"] / 10**power)
    start, end = float(children["past"].min()) / 10**power, float(mine["tokens"].max())
    figure = new_figure(9.6, 4.1)
    loss = METRICS["val_loss"].per(scored_unit(runs["task_accuracy"]))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw(left, mine[mine["run_id"].isin(parents["run_id"])], "val_loss", GREY, "-")
    for line in drawn:
        own = mine[mine["run_id"].isin(line.runs["run_id"])]
        _draw(left, own, "val_loss", line.colour, line.dashes)
        _draw(right, own[own["tokens"] >= start], "since", line.colour, line.dashes)
    right.axhline(0, **REFERENCE)
    left.axvline(start, **REFERENCE)
    words = f"{_NAMES.get(power, f'1e{power} ')}tokens, the parent's included"
    name = " and ".join(dict.fromkeys(display_name(str(kind)) for kind in parents["attention"]))
    other = f"{name} continued" if len(base) else "the parent's"
    for axes, what in ((left, loss.axis), (right, f"{loss.words}\nminus {other} ({loss.unit})")):
        axes.set_xlabel(words)
        axes.set_ylabel(what)
    panel_title(left, f"L = {length}", loss.better, runs)
    panel_title(right, f"minus {other}", loss.better, runs)
    left.set_xlim(0, 1.02 * end)
    right.set_xlim(start, end)
    low, high = _settled(mine[mine["run_id"].isin(children["run_id"])], start, end)
    few_ticks([[left, right]])
    is_wide = len(base) > 0 and max(high, -low) > _WIDE * margin
    if is_wide:
        low, high = _by_powers(right, low, high, margin)
    if len(base):
        right.axhspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
    right.set_ylim(low, high)
    if len(parents):
        top = mine.loc[mine["run_id"].isin(parents["run_id"])]
        at = top["tokens"].quantile(0.5)
        value = float(np.interp(at, *_mean(top, "val_loss")))
        left.annotate(f"parent ({name})", (at, value), (4, 6), textcoords="offset points", color=GREY, fontsize=8)
    ends = []
    for line in drawn:
        at_end = mine[mine["run_id"].isin(line.runs["run_id"]) & (mine["tokens"] >= start)]
        if len(at_end):
            x, y = _mean(at_end, "since")
            outside = " (below)" if y[-1] < low else " (above)" if y[-1] > high else ""
            ends.append(EndLabel(line.name + outside, line.colour, float(x[-1]), float(y[-1])))
    label_ends(right, ends)
    figure.supxlabel(
        balanced(_caption(runs, parents, children, margin if len(base) else None, is_wide, page), 128),
        fontsize=8,
        color=GREY,
        linespacing=1.4,
    )
    return figure


def _at(base: pd.DataFrame, records: pd.DataFrame) -> pd.Series[float]:
    """The baseline's loss of the seed of each record, at its tokens; NaN before the parent ended."""
    found = pd.Series(np.nan, index=records.index)
    for seed, own in records.groupby("seed"):
        known = base[base["seed"] == seed].sort_values("tokens")
        found[own.index] = np.interp(own["tokens"], known["tokens"], known["val_loss"], left=np.nan)
    return found


def _by_powers(axes: Axes, low: float, high: float, margin: float) -> tuple[float, float]:
    """Make the y axis linear within the margin and logarithmic outside; the limits that fit."""
    axes.set_yscale("symlog", linthresh=margin, linscale=0.8)
    low, high = min(1.5 * low, -1.5 * margin), max(1.5 * high, 1.5 * margin)
    powers = [10.0**n for n in range(int(np.ceil(np.log10(1.5 * margin))), 4)]
    ticks = [0.0, margin, -margin, *powers, *(-power for power in powers)]
    axes.set_yticks([tick for tick in sorted(ticks) if low <= tick <= high], minor=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    axes.yaxis.set_minor_locator(NullLocator())
    return low, high


def _caption(
    runs: pd.DataFrame,
    parents: pd.DataFrame,
    children: pd.DataFrame,
    margin: float | None,
    is_wide: bool,
    page: tuple[int, int],
) -> str:
    seeds = children.groupby("variant")["seed"].nunique()
    low, high = int(seeds.min()), int(seeds.max())
    many = count(high, "seed") if low == high else f"{low} to {high} seeds"
    spread = "; bands: lowest to highest seed" if high > 1 else ": the spread is not known"
    sentences = [
        f"n = {many}{spread}.",
        "Solid: from the trained parent; dashed: from scratch." if runs["past"].isna().any() else "",
        f"Dotted: where the parent ended, and its own loss{' (its curve is not here)' if parents.empty else ''}.",
        "Right: each seed against its parent, on the scale that the children end on."
        if margin is None
        else f"Shaded: the margin, +-{margin:g}{'; beyond it the axis is logarithmic' * is_wide}.",
        LEAK if runs["leak"].any() else "",
        f"Page {page[0]} of {page[1]}." if page[1] > 1 else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _mean(records: pd.DataFrame, value: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the mean over seeds, where every run has a value."""
    table = records.pivot(index="tokens", columns="run_id", values=value).dropna()
    return table.index.to_numpy(float), table.mean(axis=1).to_numpy(float)


def _draw(axes: Axes, records: pd.DataFrame, value: str, colour: str, dashes: Any) -> None:
    """The mean over seeds as a line, and a band from the lowest to the highest."""
    if records.empty:
        return
    table = records.pivot(index="tokens", columns="run_id", values=value).dropna()
    at, values = table.index.to_numpy(float), table.to_numpy(float)
    if values.shape[1] > 1:
        axes.fill_between(at, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, lw=0, zorder=2)
    axes.plot(at, values.mean(axis=1), color=colour, ls=dashes, lw=1.5, marker="o", ms=2.4, zorder=4)


def _settled(children: pd.DataFrame, start: float, end: float) -> tuple[float, float]:
    """The y limits of the second panel: of what children lose after their first quarter, and zero."""
    late = children.loc[children["tokens"] >= start + _SETTLED * (end - start), "since"]
    late = late[np.isfinite(late)]
    if late.empty:
        return -0.1, 0.1
    low, high = min(0.0, float(late.min())), max(0.0, float(late.max()))
    pad = 0.1 * (high - low) or 0.05
    return low - pad, high + pad
