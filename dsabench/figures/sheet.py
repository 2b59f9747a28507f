"""The pages of a figure whose columns are lengths: which variants and lengths go on which, and an empty page."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dsabench.analysis.variants import display_name, variant_order
from dsabench.figures.drawing import LEAK, balanced, handle, legend_layout, legend_name
from dsabench.figures.style import GREY, Look, new_figure

COLUMNS = 4
"""Panels side by side; more lengths go on further pages."""

MOST_PAGES = 12
"""Most pages of one figure; a note names what the others would show."""

_PANEL, _WIDE, _MARGIN = 2.45, 3.0, 1.0
"""Inches: the width of a panel, of a panel when there are at most two, and of the rest of the figure."""

_PER_INCH = 13.4
"""Characters of legend entries in an inch; captions have a fifth more."""


@dataclass(frozen=True)
class Page:
    """One page of a figure."""

    style: dict[str, Look]
    """Its variants."""

    runs: pd.DataFrame
    """Their runs, in all of the page's columns."""

    columns: list[Hashable]
    """The values of `facet` that its columns have."""

    facet: str
    """A column of `runs`: length, or machine."""

    number: int
    total: int

    def of(self, column: Hashable) -> pd.DataFrame:
        """The runs of one column of panels."""
        return self.runs[self.runs[self.facet] == column]

    @property
    def flat(self) -> bool:
        """Whether its rows stand side by side: a single column would be a tower."""
        return len(self.columns) == 1

    @property
    def parts(self) -> tuple[str, str]:
        """What a caption calls the first row and the second."""
        return ("Left", "right") if self.flat else ("Upper", "lower")

    @property
    def said(self) -> str:
        """`Page 2 of 3.`; empty for a single one."""
        return f"Page {self.number} of {self.total}." if self.total > 1 else ""


def pages(runs: pd.DataFrame, styles: Sequence[dict[str, Look]], facet: str = "length") -> list[Page]:
    """Every variant of `runs` on the page that `styles` says, COLUMNS values of `facet` on each."""
    found: list[tuple[dict[str, Look], pd.DataFrame, list[Hashable]]] = []
    shown: set[str] = set()
    for style in styles:
        of_page = runs[runs["variant"].isin(list(style))]
        there = set(of_page["variant"])
        if there <= shown:  # nothing, or only a baseline that stands on another page
            continue
        shown |= there
        present = {variant: look for variant, look in style.items() if variant in there}
        values = sorted(of_page[facet].unique(), key=lambda v: variant_order(f" {v}") if isinstance(v, str) else v)
        parts = np.array_split(np.arange(len(values)), math.ceil(len(values) / COLUMNS))
        found += [(present, of_page, [values[i] for i in part]) for part in parts]
    return [
        Page(style, of_page[of_page[facet].isin(columns)], columns, facet, i, len(found))
        for i, (style, of_page, columns) in enumerate(found, 1)
    ]


def too_many(every: list[Page]) -> tuple[list[Page], list[str]]:
    """At most MOST_PAGES of them, and a note that names what is on the others."""
    rest = every[MOST_PAGES:]
    if not rest:
        return every, []
    kept = every[:MOST_PAGES]
    drawn, lost = ({variant for page in some for variant in page.style} for some in (kept, rest))
    names = [display_name(variant) for variant in sorted(lost - drawn, key=variant_order)]
    what = f"{len(names)} variants ({names[0]} ... {names[-1]})" if names else "some lengths"
    return kept, [f"the first {MOST_PAGES} of {len(every)} pages are drawn, without {what}; choose some with --where"]


def panel_width(page: Page, rows: int) -> float:
    """Inches of one panel, roughly."""
    return _WIDE if max(len(page.columns), rows if page.flat else 1) <= 2 else _PANEL


def empty_page(
    page: Page, rows: int, extra: Sequence[Line2D], caption: Sequence[str], share_y: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with the page's legend and caption, and its panels as rows of columns."""
    across, down = (rows, 1) if page.flat else (len(page.columns), rows)
    width = _MARGIN + panel_width(page, rows) * max(2, across)
    characters = int(_PER_INCH * width)
    handles = [handle(look, legend_name(v, page.runs, characters - 12)) for v, look in page.style.items()]
    handles += extra
    lines, columns = legend_layout([str(h.get_label()) for h in handles], characters)
    sentences = [*caption, LEAK if page.runs["leak"].any() else "", page.said]
    text = balanced(" ".join(s for s in sentences if s), int(1.2 * characters))
    figure = new_figure(width, 2.35 * down + 0.35 + 0.2 * lines + 0.16 * (text.count("\n") + 1))
    grid = figure.subplots(down, across, squeeze=False, sharey="row" if share_y and not page.flat else False)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3.5)
    figure.supxlabel(text, fontsize=8, color=GREY, linespacing=1.4)
    return figure, [list(row) for row in (grid.T if page.flat else grid)]


def few_ticks(panels: list[list[Axes]]) -> None:
    """Fix the number of ticks. If it followed the size of the panel, the layout would not settle."""
    for axes in (axes for row in panels for axes in row):
        for name in ("x", "y"):
            if axes.get_xscale() == "linear" if name == "x" else axes.get_yscale() == "linear":
                axes.locator_params(axis=name, nbins=6 if name == "y" else 5)


def outer_labels(panels: list[list[Axes]], x: str, y: Sequence[str]) -> Iterator[tuple[Axes, int, int]]:
    """Label rows at the left and columns below; every panel with its row and column."""
    for i, row in enumerate(panels):
        row[0].set_ylabel(y[i])
        for j, axes in enumerate(row):
            if i == len(panels) - 1 or len(row) == 1:
                axes.set_xlabel(x)
            yield axes, i, j
