"""A bench's figure: time against length, one line an implementation, the crossover marked; and the speed-up.

Nothing here needs torch. Dense implementations are blues; all differ in marker and line, so that grey print tells them
apart too.
"""

from __future__ import annotations

import textwrap
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from dsabench.bench.summary import TRAINED
from dsabench.figures.drawing import line, plain_log_ticks, say
from dsabench.figures.style import GREY, INK, Look, length_axis, new_figure, styled

if TYPE_CHECKING:
    from dsabench.bench.document import Cell, Document

LOOKS = {
    "dense-flash": Look("#0072B2", "<", "-"),
    "dense-flash-gqa": Look("#0072B2", "v", "--"),
    "dense-cudnn": Look("#56B4E9", "s", "-"),
    "dense-cudnn-gqa": Look("#56B4E9", "D", "--"),
    "dense-efficient": Look("#595959", "P", "-."),
    "dense-math": Look("#595959", "X", ":"),
    "window-flex": Look("#009E73", "^", "-"),
    "dsa-reference": Look("#CC79A7", "h", ":"),
    "dsa-masked": Look("#E69F00", "s", "-."),
    "dsa-triton": Look("#D55E00", "o", "-"),
    "dsa-triton-single": Look("#D55E00", "1", "--"),
    "dense-flex": Look("#56B4E9", "2", "-."),
    "dsa-gym": Look("#CC79A7", "3", "--"),
    "nsa-fla": Look("#009E73", "4", "-."),
}
_TRAINED = " (trained, mean)"
"""The mean over a run's layers."""

_OTHER = Look("#000000", "p", ":")

_WIDTH, _HEIGHT = 10.0, 5.4
_PANEL = 3.9
"""Inches of a panel's x axis."""


def bench_figure(document: Document) -> Figure:
    """Two panels; without any time they say so."""
    timed = [cell for cell in document.cells if cell.ms is not None]
    with styled():
        figure = new_figure(_WIDTH, _HEIGHT)
        left, right = figure.subplots(1, 2)
        names = _names(timed)
        if not timed:
            for axes in (left, right):
                say(axes, "nothing was timed")
            return figure
        for name in names:
            _draw(left, timed, name, "ms")
            _draw(right, [cell for cell in timed if cell.speed_up is not None], name, "speed_up")
        lengths = [cell.length for cell in timed]
        _time_axes(left, lengths)
        _speed_axes(right, lengths, any(cell.speed_up is not None for cell in timed))
        _mark_crossover(left, right, document)
        figure.suptitle(_title(document), x=0.01, ha="left", fontsize=9)
        handles = [Line2D([], [], **line(_look(name)), label=name) for name in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    return figure


def _names(cells: list[Cell]) -> list[str]:
    """Implementations in the order of LOOKS, others last; the dense stage of one is a line of its own."""
    found = dict.fromkeys(_name(cell) for cell in cells)
    order = list(LOOKS)
    return sorted(found, key=lambda name: (order.index(_base(name)) if _base(name) in order else len(order), name))


def _name(cell: Cell) -> str:
    if cell.layer is not None:
        return cell.implementation + _TRAINED
    return cell.implementation + (" (warm-up)" if cell.stage == "dense" else "")


def _base(name: str) -> str:
    return name.removesuffix(" (warm-up)").removesuffix(_TRAINED)


def _look(name: str) -> Look:
    look = LOOKS.get(_base(name), _OTHER)
    if name.endswith(_TRAINED):
        return Look(look.colour, "*", (0, (5, 1)))
    return look if _base(name) == name else Look(look.colour, "d", (0, (1, 1)))


def _draw(axes: Axes, cells: list[Cell], name: str, field: str) -> None:
    at: dict[int, list[float]] = {}
    for cell in cells:
        if _name(cell) == name:
            at.setdefault(cell.length, []).append(getattr(cell, field))
    points = sorted((length, fmean(values)) for length, values in at.items())
    if points:
        axes.plot(*zip(*points, strict=True), **line(_look(name)), zorder=5 if _base(name) == "dsa-triton" else 4)


def _time_axes(axes: Axes, lengths: list[int]) -> None:
    axes.set_yscale("log")
    plain_log_ticks(axes, *axes.get_ylim())
    length_axis(axes, lengths, _PANEL, 0.3)
    axes.set_xlabel("L (tokens)")
    axes.set_title("time, forward + backward (ms)")
    axes.set_title("lower is better", loc="right", fontsize=8, color=GREY)


def _speed_axes(axes: Axes, lengths: list[int], any_times: bool) -> None:
    axes.set_title("speed-up over the fastest dense")
    axes.set_title("higher is better", loc="right", fontsize=8, color=GREY)
    if not any_times:
        say(axes, "no dense implementation was timed")
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.8), max(high, 1.25))
    plain_log_ticks(axes, *axes.get_ylim())
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.axhline(1.0, color=GREY, linewidth=1.0, zorder=2)
    length_axis(axes, lengths, _PANEL, 0.3)
    axes.set_xlabel("L (tokens)")


def _mark_crossover(left: Axes, right: Axes, document: Document) -> None:
    """Lines where DSA by Triton overtakes the fastest dense, with random inputs and with a run's; in words where it
    does not, or does everywhere."""
    names = {"dsa-triton": "random", TRAINED: "trained"}
    against_dense = {one.implementation: one for one in reversed(document.crossovers)}  # the first of each
    found = [against_dense[name] for name in names if name in against_dense]
    found = [one for one in found if one.relation != "not measured"]
    texts = []
    for one in found:
        if one.relation == "interpolated" and one.length is not None:
            look = _look("dsa-triton" + _TRAINED if one.implementation == TRAINED else "dsa-triton")
            for axes in (left, right):
                axes.axvline(one.length, color=look.colour, linewidth=1.0, linestyle=look.line, alpha=0.7, zorder=1.5)
            alone = len(found) == 1 and one.implementation == "dsa-triton"
            which = "" if alone else f", {names[one.implementation]}"
            texts.append(f"crossover: L = {one.length:,.0f}{which}")
        else:
            texts.append("\n".join(textwrap.wrap(one.words, 44)))
    if texts:
        left.text(
            0.03, 0.97, "\n".join(texts), transform=left.transAxes, va="top", fontsize=8, color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2.0}, zorder=6,
        )  # fmt: skip


def _title(document: Document) -> str:
    s, name = document.settings, document.environment["device_name"]
    layer = (
        f"One attention layer on {name}, {s.dtype}: B={s.batch}, H={s.heads} heads on {s.kv_heads} KV, D={s.head_dim}, "
        f"k={s.top_k}, indexer {s.indexer_heads} x {s.indexer_dim}"
    )
    return "\n".join([*textwrap.wrap(layer, 130), *textwrap.wrap(f"Inputs: {document.inputs}", 130)])
