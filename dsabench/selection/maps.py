"""The picture of a selection: for each layer, which keys its queries selected, beside where full attention looks.

Legend: T query, S key.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator
from numpy.typing import NDArray

from dsabench.figures.style import GREY, new_figure, save_png, styled

if TYPE_CHECKING:
    from dsabench.selection.capture import LayerSelection
    from dsabench.selection.numbers import Numbers
    from dsabench.selection.stored_run import Inspection
    from dsabench.selection.targets import Questions

CELLS = 512
"""Most cells of a map along one side: more could not be told apart in the picture."""

MOST_LAYERS = 12
"""Most layers that are drawn; of more, evenly spaced ones, which the caption names."""

LEAST, MOST = 0.1, 100.0
"""Ends of the attention scale, in even shares 1 / (t + 1)."""

_FUTURE = "#D9D9D9"
"""The grey of keys after their query; white means not selected."""

_BLUES = LinearSegmentedColormap.from_list("blues", ["#FFFFFF", "#9CC9E6", "#0072B2", "#00263D"])
"""White to nearly black through the blue of the other figures: even steps in grey, too."""

_TARGET = "#D55E00"
"""Vermilion: plain on white and on every blue."""

_TWO = ListedColormap(["#FFFFFF", "#00263D"])


def selection_map(inspection: Inspection, path: Path) -> Path:
    """Draw the query x key maps of the layers; the same inspection gives the same bytes. Raises ResultsError."""
    with styled():
        return save_png(draw(inspection), path)


def draw(inspection: Inspection) -> Figure:
    """The figure, to be used inside `styled()`."""
    layers = _spaced(inspection.layers)
    rows = {numbers["layer"]: numbers for numbers in inspection.numbers["layers"]}
    heading = "\n".join(textwrap.wrap(_ascii(inspection.title), 105))
    figure = new_figure(8.0, 2.0 + 3.75 * len(layers) + 0.17 * heading.count("\n"))
    figure.suptitle(f"{heading}\n", fontsize=9, x=0.01, ha="left")
    grid = figure.subplots(len(layers), 2, squeeze=False)
    side = cell_size(inspection.length)
    share, scale = Normalize(0, 1), LogNorm(LEAST, MOST)
    for layer, (left, right) in zip(layers, grid, strict=True):
        causal_TS = np.tri(layer.length, dtype=bool)
        even_T1 = 1.0 / np.arange(1, layer.length + 1)[:, None]
        share_TS = cells(layer.member_TS.astype(np.float32), causal_TS, side)
        ratio_TS = cells((layer.mass_TS / even_T1).astype(np.float32), causal_TS, side)
        _map(left, share_TS, share, _TWO if side == 1 else _BLUES, layer.length)
        _map(right, ratio_TS, scale, _BLUES, layer.length)
        if inspection.questions is not None:
            for axes in (left, right):
                _targets(axes, layer, inspection.questions)
        left.set_title(
            f"Layer {layer.layer}: selected keys\n{_recall(rows[layer.layer])}{_found(rows[layer.layer])}", fontsize=9
        )
        right.set_title(f"Layer {layer.layer}: attention\n{_best(rows[layer.layer])}", fontsize=9)
        left.set_ylabel("query (token position)")
    for axes in grid[-1]:
        axes.set_xlabel("key (token position)")
    if side == 1:
        _bar(figure, grid[:, 0], ScalarMappable(share, _TWO), "key", {0.25: "not selected", 0.75: "selected"})
    else:
        shares = {0.0: "none", 0.25: "", 0.5: "half", 0.75: "", 1.0: "all"}
        _bar(figure, grid[:, 0], ScalarMappable(share, _BLUES), "share of a cell's keys that is selected", shares)
    multiples = {0.1: "0.1x or less", 1.0: "1x", 10.0: "10x", 100.0: "100x"}
    _bar(figure, grid[:, 1], ScalarMappable(scale, _BLUES), "attention mass / an even share 1/(t+1)", multiples)
    figure.supxlabel(_caption(inspection, layers, side), fontsize=8, color=GREY, linespacing=1.4)
    return figure


def cell_size(length: int) -> int:
    """Tokens that one cell of a map stands for, along each side: ceil(L / CELLS)."""
    return math.ceil(length / CELLS)


def cells(values_TS: NDArray[np.float32], causal_TS: NDArray[np.bool_], side: int) -> NDArray[np.float64]:
    """Means over side x side squares of the pairs that are causal; NaN where a square has none."""
    starts = np.arange(0, len(values_TS), side)

    def sums(of_TS: NDArray[Any]) -> NDArray[np.float64]:
        rows = np.add.reduceat(of_TS, starts, axis=0, dtype=np.float64)
        total: NDArray[np.float64] = np.add.reduceat(rows, starts, axis=1)
        return total

    if side == 1:
        return np.where(causal_TS, values_TS, np.nan).astype(np.float64)
    count = sums(causal_TS)
    return np.where(count > 0, sums(np.where(causal_TS, values_TS, np.float32(0))) / np.maximum(count, 1), np.nan)


def _map(axes: Axes, values: NDArray[np.float64], norm: Normalize, colours: Colormap, length: int) -> None:
    shown = np.ma.masked_invalid(np.clip(values, norm.vmin, norm.vmax))
    # Positions are tokens, whatever a cell stands for; the last cell may reach past the end.
    end = len(values) * cell_size(length) - 0.5
    colours = colours.with_extremes(bad=_FUTURE)
    axes.imshow(shown, cmap=colours, norm=norm, extent=(-0.5, end, end, -0.5), interpolation="nearest")
    axes.set_xlim(-0.5, length - 0.5)
    axes.set_ylim(length - 0.5, -0.5)
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 4, 5, 8, 10]))


def _targets(axes: Axes, layer: LayerSelection, questions: Questions) -> None:
    """A ring around each selected target of the scored queries, a cross on each that is not."""
    query, slot = np.nonzero(questions.targets_TM >= 0)
    key = questions.targets_TM[query, slot]
    found = layer.member_TS[query, key]
    axes.plot(key[found], query[found], ls="none", marker="o", mfc="none", mec=_TARGET, ms=6, mew=1.2)
    axes.plot(key[~found], query[~found], ls="none", marker="x", color=_TARGET, ms=4.5, mew=1.2)


def _bar(figure: Figure, axes: NDArray[Any], colours: ScalarMappable, label: str, ticks: dict[float, str]) -> None:
    """A colour bar above a column of maps, of the same thickness for any number of layers."""
    bar = figure.colorbar(colours, ax=list(axes), location="top", aspect=30, shrink=0.85, pad=0.03 / len(axes))
    bar.set_label(label, fontsize=8)
    bar.ax.xaxis.set_major_locator(FixedLocator(list(ticks)))
    bar.ax.xaxis.set_major_formatter(FixedFormatter(list(ticks.values())))
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8)


def _recall(numbers: Numbers) -> str:
    if numbers["mass_recall"] is None:
        return f"k = {numbers['k']}: everything is selected"
    return f"mass recall {numbers['mass_recall']:.2f} (chance {numbers['mass_recall_chance']:.2f})"


def _found(numbers: Numbers) -> str:
    if "target_recall" not in numbers:
        return ""
    return f"; targets {numbers['target_recall']:.2f} ({numbers['target_recall_chance']:.2f})"


def _best(numbers: Numbers) -> str:
    if numbers["mass_recall"] is None:
        return "all of it on selected keys"
    return f"best recall at k = {numbers['k']}: {numbers['mass_recall_best']:.2f}"


def _caption(inspection: Inspection, layers: Sequence[LayerSelection], side: int) -> str:
    square = "one query and one key" if side == 1 else f"{side} queries x {side} keys, their mean"
    lines = [f"A cell is {square}. Grey: keys after the query. Attention: full softmax, mean over heads."]
    ks = [layer.k for layer in layers if layer.k < layer.length]
    if ks:
        lines.append(f"Mass recall: share of the attention on the selected keys, mean over queries t >= k = {max(ks)}.")
    if inspection.questions is not None:
        lines.append(
            "Rings: selected targets of queries that ask for an answer; crosses: others. Above: their share (chance)."
        )
    if len(layers) < len(inspection.layers):
        lines.append(f"Drawn are {len(layers)} of {len(inspection.layers)} layers; --layers chooses others.")
    return "\n".join(lines)


def _spaced(layers: Sequence[LayerSelection]) -> list[LayerSelection]:
    if len(layers) <= MOST_LAYERS:
        return list(layers)
    return [layers[round(i)] for i in np.linspace(0, len(layers) - 1, MOST_LAYERS)]


def _ascii(text: str) -> str:
    """The text in characters that the picture's font has: names of documents may hold any."""
    return text.encode("ascii", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
