"""What the tests of figures share: attentions, stores, and how to find what a figure shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dsabench.analysis.scope import look_at
from dsabench.figures.catalogue import FIGURES, draw
from dsabench.figures.data import Drawn, FigureData, figure_data
from dsabench.report import report_page

DENSE, DSA = {"kind": "dense"}, {"kind": "dsa", "top_k_ratio": 0.5}
RATIOS = (0.1, 0.25, 0.5)
SPARSE = [{"kind": "dsa", "top_k_ratio": ratio} for ratio in RATIOS]
H200 = {"device_name": "NVIDIA H200 of another machine", "precision": "fp32"}


def pages(name: str, data: FigureData) -> list[Figure]:
    drawn = draw(name, data)
    assert isinstance(drawn, Drawn), drawn
    return drawn.pages


def reason(name: str, data: FigureData) -> str:
    drawn = draw(name, data)
    assert isinstance(drawn, str)
    return drawn


def caption(figure: Figure) -> str:
    return typed(" ".join(figure.get_supxlabel().split()))


def typed(text: str) -> str:
    """Text of a figure with its minus and plus-minus signs as they are typed, and as tables in a terminal have them."""
    return text.replace("\u2212", "-").replace("\u00b1", "+-")


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def drawn_ticks(axes: Axes) -> list[Any]:
    """The ticks of both axes that lie within the panel; matplotlib keeps others that it does not draw."""
    found = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_transform().transform(axis.get_view_interval()))
        near = 1e-9 * (high - low)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if low - near <= axis.get_transform().transform(tick.get_loc()) <= high + near:
                found.append(tick)
    return found


def title(axes: Axes, side: str) -> list[Text]:
    """The text of a panel's title on this side, if it has one."""
    words = axes.get_title(side)
    found = [each for each in axes.get_children() if isinstance(each, Text) and each.get_text() == words]
    return [each for each in found if words and each.get_horizontalalignment() == side]


def means(axes: Axes, marker: str) -> list[Any]:
    """The lines of means of a look, large markers on a line, in drawing order."""
    return [line for line in axes.lines if line.get_marker() == marker and line.get_linestyle() != "None"]


def at(store: Path, **choice: Any) -> FigureData:
    return figure_data(look_at(store, **choice))


def report_with(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Reports draw these figures alone; each takes a second, and all have tests of their own."""
    patch.setattr(report_page, "_ORDER", names)
    patch.setattr(report_page, "FIGURES", {name: FIGURES[name] for name in names})


def boxes(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """All text that is seen, and where it is."""
    outside = {id(text) for axes in figure.findobj(Axes) for text in unseen_ticks(axes)}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_visible() or not text.get_text().strip() or id(text) in outside:
            continue
        whole, (upper, _, last) = Text.get_window_extent(text), text.get_text().rpartition("\n")
        if upper and text.get_verticalalignment() == "baseline":  # a panel's title: lines of different lengths
            alone = Text.get_window_extent(copied(text, last or "X"))
            if last:
                yield last, alone
            yield upper, Bbox.from_extents(whole.x0, alone.y1, whole.x1, whole.y1)
        else:
            yield text.get_text(), whole


def copied(text: Text, content: str) -> Text:
    """`text` with other content, where it stands."""
    other = Text(*text.get_position(), content, ha=text.get_horizontalalignment(), va="baseline")
    other.set_fontproperties(text.get_fontproperties())
    other.set_transform(text.get_transform())
    other.set_figure(text.get_figure())
    return other


def unseen_ticks(axes: Any) -> Iterator[Text]:
    """Tick labels that matplotlib keeps but does not draw: outside of the axis, or those of a shared axis."""
    drawn = {id(tick) for tick in drawn_ticks(axes)}
    for axis in (axes.xaxis, axes.yaxis):
        for tick in [*axis.majorTicks, *axis.minorTicks]:
            for label in (tick.label1, tick.label2):
                if id(tick) not in drawn or not label.get_visible() or not tick.get_visible():
                    yield label
