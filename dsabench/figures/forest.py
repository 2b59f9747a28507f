"""Forest plot: every paired difference with its 95 % interval, the margin, and the verdict in words."""

from __future__ import annotations

import math
import textwrap
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dsabench.analysis.comparison import Comparison, Table
from dsabench.analysis.comparison_row import Row
from dsabench.analysis.formats import verdict_grid
from dsabench.analysis.variants import display_name, variant_order
from dsabench.figures.data import Drawn, FigureData
from dsabench.figures.drawing import LEAK, REFERENCE, balanced, no_difference
from dsabench.figures.sheet import MOST_PAGES
from dsabench.figures.style import GREY, GRID, INK, PAPER, Look, new_figure

LINES = 34
"""Lines of a page: rows and the names above them."""

_WIDTH, _LINE, _CHARACTERS = 9.0, 0.21, 96
"""Inches of a page and of a line; characters of a variant's name that fit into a line."""

_LEFT = -48
"""Points from the panel to the names at its left."""

_COLUMNS = (8, 40, 190)
"""Points from the panel to the columns at its right: pairs, difference, verdict."""


class _Entry(NamedTuple):
    row: Row
    difference: str
    verdict: str


def forest(data: FigureData) -> Drawn | str:
    """Differences of `compare`, by variant and length; no statistics are made here."""
    if data.baseline is None:
        return "needs a baseline; name an attention of these runs with --baseline"
    found = data.comparison
    entries = [entry for table in found.tables for entry in _entries(table, found)]
    if not entries:
        return f"no run has a partner: it needs {data.baseline} and another attention of one length and seed"
    pages = _pages(entries)
    notes = []
    if rest := [entry for page in pages[MOST_PAGES:] for entry in page]:
        notes.append(f"{len(rest)} of {len(entries)} differences are not drawn; choose some with --where")
    style = {variant: look for page in data.pages for variant, look in page.items()}
    kept = pages[:MOST_PAGES]
    limits = _limits([entry.row for page in kept for entry in page], found.margin)
    said = [f"Page {i} of {len(kept)}." if len(kept) > 1 else "" for i in range(1, len(kept) + 1)]
    return Drawn([_page(page, found, style, limits, text) for page, text in zip(kept, said, strict=True)], notes)


def _entries(table: Table, found: Comparison) -> list[_Entry]:
    grid = verdict_grid(table, found)
    verdict = grid.headings.index("verdict")
    difference = next(i for i, heading in enumerate(grid.headings) if heading.startswith("difference"))
    entries = [_Entry(row, cells[difference], cells[verdict]) for row, cells in zip(table.rows, grid.rows, strict=True)]
    return sorted(entries, key=lambda entry: (variant_order(entry.row.variant), entry.row.length))


def _pages(entries: list[_Entry]) -> list[list[_Entry]]:
    """At most LINES lines on each: a variant's name above its rows, again where they go on."""
    pages: list[list[_Entry]] = [[]]
    used = 0
    for entry in entries:
        starts = not pages[-1] or pages[-1][-1].row.variant != entry.row.variant
        needed = 1 + (len(_name(entry.row)) if starts else 0)
        if used + needed > LINES:
            pages.append([])
            used, needed = 0, 1 + len(_name(entry.row))
        pages[-1].append(entry)
        used += needed
    return pages


def _name(row: Row) -> list[str]:
    leak = " [LEAK]" if row.verdict == "LEAK" else ""
    return textwrap.wrap(display_name(row.variant) + leak, _CHARACTERS, break_on_hyphens=False)


def _limits(rows: list[Row], margin: float | None) -> tuple[float, float]:
    """All means and the margin, but not a LEAK; intervals too, unless those of few pairs would squeeze all others."""
    rows = [row for row in rows if row.verdict != "LEAK"] or rows
    means = [abs(row.difference.mean) for row in rows if math.isfinite(row.difference.mean)]
    ends = [abs(end) for row in rows for end in (row.difference.low, row.difference.high) if math.isfinite(end)]
    needed = max([*means, margin or 0.0, 1e-9])
    half = 1.1 * min(max([*ends, needed]), 4 * needed)
    return -half, half


def _page(
    page: list[_Entry], found: Comparison, style: dict[str, Look], limits: tuple[float, float], said: str
) -> Figure:
    names = [_name(entry.row) for i, entry in enumerate(page) if i == 0 or page[i - 1].row.variant != entry.row.variant]
    lines = len(page) + sum(map(len, names))
    caption = balanced(" ".join(filter(None, _caption(page, found, limits, said))), 140)
    figure = new_figure(_WIDTH, _LINE * (lines + 1.6) + 0.85 + 0.16 * (caption.count("\n") + 1))
    axes = figure.subplots()
    axes.set_xlim(limits)
    axes.set_ylim(lines - 0.3, -0.7)
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=INK, marker="o", ms=5, lw=1.4, mec=PAPER, label="mean and 95 % interval")
    ]
    if found.margin is not None:
        handles.append(Patch(color=GRID, alpha=0.55, label=f"margin, +-{found.margin:g} {found.margin_unit}"))
    handles.append(no_difference(display_name(found.baseline)))
    axes.set_yticks([])
    at = 0
    for i, entry in enumerate(page):
        if i == 0 or page[i - 1].row.variant != entry.row.variant:
            for text in _name(entry.row):
                axes.annotate(
                    text, (0, at), (_LEFT, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                    va="center", weight="bold", fontsize=8.5, annotation_clip=False,
                )  # fmt: skip
                at += 1
        if found.margin is not None:
            axes.fill_betweenx([at - 0.5, at + 0.5], -found.margin, found.margin, color=GRID, alpha=0.55, lw=0)
        axes.plot([0, 0], [at - 0.5, at + 0.5], **REFERENCE)
        axes.annotate(
            f"L = {entry.row.length}", (0, at), (_LEFT, 0), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points", va="center", fontsize=8.5, annotation_clip=False,
        )  # fmt: skip
        _draw(axes, at, entry, style.get(entry.row.variant, Look(INK, "o", "-")), limits)
        at += 1
    for offset, heading in zip(_COLUMNS, ("pairs", "difference [95 % interval]", "verdict"), strict=True):
        _beside(axes, -1, offset, heading, GREY)
    better = "lower" if found.lower_is_better else "higher"
    axes.set_xlabel(f"{found.metric} minus {display_name(found.baseline)} ({found.unit}); {better} is better")
    axes.locator_params(axis="x", nbins=6)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, handlelength=3)
    figure.supxlabel(caption, fontsize=8, color=GREY, linespacing=1.4)
    return figure


def _draw(axes: Axes, at: int, entry: _Entry, look: Look, limits: tuple[float, float]) -> None:
    estimate, leak = entry.row.difference, entry.row.verdict == "LEAK"
    ends = [end for end in (estimate.low, estimate.high) if math.isfinite(end)]
    axes.plot([min(max(end, limits[0]), limits[1]) for end in ends], [at] * len(ends), color=look.colour, lw=1.4)
    for end in ends:
        if limits[0] <= end <= limits[1]:
            axes.plot([end], [at], marker="|", color=look.colour, ms=5)
        else:
            arrow, beyond = ("<", limits[0]) if end < limits[0] else (">", limits[1])
            axes.plot([beyond], [at], marker=arrow, color=look.colour, ms=5, clip_on=False)
    if limits[0] <= estimate.mean <= limits[1]:
        face, edge = ("none", look.colour) if leak else (look.colour, PAPER)
        axes.plot([estimate.mean], [at], marker=look.marker, mfc=face, mec=edge, mew=0.7, ms=7, ls="none", zorder=4)
    for offset, text in zip(_COLUMNS, (str(estimate.n), entry.difference, entry.verdict), strict=True):
        _beside(axes, at, offset, text, INK)


def _beside(axes: Axes, at: float, offset: float, text: str, colour: str) -> None:
    axes.annotate(
        text, (1, at), (offset, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
        va="center", color=colour, fontsize=8, annotation_clip=False,
    )  # fmt: skip


def _caption(page: list[_Entry], found: Comparison, limits: tuple[float, float], said: str) -> list[str]:
    verdicts = {entry.row.verdict for entry in page}
    cut = any(abs(end) > limits[1] for e in page for end in (e.row.difference.low, e.row.difference.high))
    return [
        "Each row: differences of pairs of one seed, their mean and its paired t interval.",
        f"Margin: {found.margin_source}." if found.margin is not None else "",
        "Not worse: by less than the margin (one-sided t test)." if "not worse" in verdicts else "",
        "Inconclusive is no proof of equality." if "inconclusive" in verdicts else "",
        "Arrows: it goes on beyond the panel." if cut else "",
        LEAK if "LEAK" in verdicts else "",
        said,
    ]
