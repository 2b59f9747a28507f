"""Tables of the terminal: columns that give way by their importance, so that no row is wider than the screen.

A table on a terminal is fitted to its width, in this order: headings become short, names become numbers with a
footnote, texts are cut or wrapped down to their column's least width, columns are left out. What then remains of the
width is given back in the opposite order. What was cut or left out is named in a line below the table. Without a
terminal (a pipe, a file) the width has no bound: nothing is cut, numbered or left out, and all of it is ASCII.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from dsabench.cli.safe_text import printable

MARK = "..."
"""The end of a text that was cut."""

_FLOOR = 4
"""Least width of a column whose text is cut: a letter and the mark."""

_BOUNDLESS = 1_000_000

ELSEWHERE = "a wider terminal or --json shows them"


@dataclass(frozen=True)
class Column:
    """A column: its heading, and how it gives way where a terminal is narrow."""

    heading: str
    """The heading where there is room; it names the column where it is left out."""
    short: str = ""
    """A narrower heading, on several lines if it holds ends of lines; empty: the heading itself."""
    left: bool = False
    """Texts stand at the left; numbers at the right."""
    drop: int = 0
    """0: never left out; else the columns with the greatest number go first, together."""
    least: int = 0
    """Cells to which longer texts may be shortened; 0: they are not."""
    shorten: Literal["cut", "wrap", "number"] = "cut"
    """Cut with a mark, wrapped at words, or each name numbered, with a footnote that says all of it."""


class Cell(NamedTuple):
    """A text with a style of rich (`green`, `bold red`), shown where there is colour."""

    text: str
    style: str = ""


class Row(NamedTuple):
    """A row with a style of its own, and lines that stand indented below it."""

    cells: Sequence[str | Cell]
    style: str = ""
    below: Sequence[str] = ()


class Fitted(NamedTuple):
    """The lines of a table at a width, and what they do not say."""

    lines: list[Text]
    left_out: list[str]
    """Headings of the columns that are not shown."""
    cut: list[str]
    """Headings of the columns of which a text is cut."""


def print_table(
    console: Console,
    columns: Sequence[Column],
    rows: Iterable[Sequence[str | Cell] | Row],
    *,
    rule: bool = True,
    elsewhere: str = ELSEWHERE,
    footnotes: dict[str, int] | None = None,
) -> None:
    """Print a table as wide as the terminal allows; an empty row is a blank line.

    elsewhere: where a reader finds what was left out.
    footnotes: the numbers of names that several tables share; who passes them prints `footnote_lines` below the last.
    """
    numbers: dict[str, int] = {} if footnotes is None else footnotes
    plain = not console.is_terminal
    line = "" if not rule else "-" if plain or console.legacy_windows or console.options.ascii_only else "\u2500"
    width = _BOUNDLESS if plain else console.width
    table = fitted(columns, list(rows), width, rule=line, footnotes=numbers)
    for shown in table.lines:
        console.print(shown, soft_wrap=True)
    say(console, *(footnote_lines(numbers) if footnotes is None else []), *_missing(table, width, elsewhere))


def say(console: Console, *lines: str, style: str = "") -> None:
    """Print lines of prose, wrapped on a terminal only."""
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=not console.is_terminal)


def footnote_lines(footnotes: dict[str, int]) -> list[str]:
    """A line for each name that stands as a number in a table."""
    return [f"[{number}] {name}" for name, number in footnotes.items()]


def fitted(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | Cell] | Row],
    width: int,
    *,
    rule: str = "-",
    footnotes: dict[str, int] | None = None,
) -> Fitted:
    """A table at `width` cells; names that are numbered are added to `footnotes`."""
    numbers: dict[str, int] = {} if footnotes is None else footnotes
    table = [row if isinstance(row, Row) else Row(row) for row in rows]
    cells = [[_cell(cell) for cell in row.cells] for row in table]
    trial = dict(numbers)  # as wide as the numbers can become
    fits = [_Fit(column, [row[i].text for row in cells if row], trial) for i, column in enumerate(columns)]
    kept = _kept(fits, width)
    gap = _widen(kept, width)
    for fit in kept:
        if fit.numbered:
            fit.number(numbers)
    height = max((len(fit.heading()) for fit in kept), default=0)
    headings = [[""] * (height - len(fit.heading())) + fit.heading() for fit in kept]
    lines = [_line(kept, [Cell(heading[i]) for heading in headings], gap, "bold") for i in range(height)]
    if rule:
        lines.append(Text(rule * (sum(fit.width for fit in kept) + gap * (len(kept) - 1))))
    places = [i for i, fit in enumerate(fits) if fit in kept]
    filled = iter(range(len(rows)))
    for row, given in zip(table, cells, strict=True):
        if given:
            i = next(filled)
            styles = [given[place].style for place in places]
            for parts in zip_longest(*(fit.block(i) for fit in kept), fillvalue=""):
                lines.append(_line(kept, list(map(Cell, parts, styles)), gap, row.style))
        else:
            lines.append(Text())
        for below in row.below:
            lines += [Text(f"    {line}") for line in _wrapped(printable(below), width - 4)]
    return Fitted(lines, [fit.name for fit in fits if fit not in kept], [fit.name for fit in kept if fit.is_cut()])


class _Fit:
    """A column's texts, the width that they have now, and the least and the most that it may become."""

    def __init__(self, column: Column, texts: list[str], numbers: dict[str, int]) -> None:
        self.column, self.texts = column, texts
        self.name = printable(column.heading.replace("\n", " "))
        self.most = max(map(cell_len, texts), default=0)
        self.full, self.short = (
            [printable(line) for line in text.split("\n")] for text in (column.heading, column.short or column.heading)
        )
        self.numbered = self.long = False
        least = self.most
        if column.shorten == "number" and 0 < column.least < self.most:
            self.numbered = True
            least = max(cell_len(text) for text in short_names(texts, column.least, numbers))
        elif 0 < column.least < self.most:
            words = [cell_len(word) for text in texts for word in text.split()] if column.shorten == "wrap" else []
            least = min(self.most, max(column.least, _FLOOR, *words))
        self.width = max(least, _widest(self.short))

    def heading(self) -> list[str]:
        """The lines of the heading at the width."""
        return [_cut(line, self.width) for line in (self.full if self.long else self.short)]

    def number(self, footnotes: dict[str, int]) -> None:
        """Put the numbers of the long names in their place."""
        self.texts = short_names(self.texts, self.column.least, footnotes)

    def block(self, i: int) -> list[str]:
        """The lines of a row's text at the width."""
        if self.column.shorten == "wrap":
            return _wrapped(self.texts[i], self.width)
        return [_cut(self.texts[i], self.width)]

    def is_cut(self) -> bool:
        """Whether a text, or the heading, does not stand there whole."""
        texts = [] if self.column.shorten == "wrap" else self.texts
        return max(map(cell_len, [*texts, *(self.full if self.long else self.short)]), default=0) > self.width


def _kept(fits: Sequence[_Fit], width: int) -> list[_Fit]:
    """The columns that can stand beside each other at their least widths.

    Where no more may go, texts are cut shorter than they may be, then columns go from the right: a number is never cut.
    """
    kept = list(fits)

    def missing() -> int:
        return sum(fit.width for fit in kept) + len(kept) - 1 - width

    while missing() > 0 and (giving := [fit for fit in kept if fit.column.drop]):
        most = max(fit.column.drop for fit in giving)
        kept = [fit for fit in kept if fit.column.drop != most]
    while missing() > 0 and (wide := [fit for fit in kept if fit.width > _FLOOR and fit.column.left]):
        max(wide, key=lambda fit: fit.width).width -= 1
    while missing() > 0 and len(kept) > 1:
        kept.pop()
    if kept:
        kept[0].width = min(kept[0].width, width)
    return kept


def _widen(kept: Sequence[_Fit], width: int) -> int:
    """Give the columns what the width leaves; the gap between columns."""
    room = width - sum(fit.width for fit in kept) - (len(kept) - 1)

    def grow(shorten: str) -> None:
        nonlocal room
        growing = [fit for fit in kept if fit.column.shorten == shorten and not fit.numbered]
        while room > 0 and (narrow := [fit for fit in growing if fit.width < fit.most]):
            for fit in narrow:
                step = min(room, max(1, room // (2 * len(narrow))), fit.most - fit.width)
                fit.width, room = fit.width + step, room - step

    grow("cut")
    for fit in kept:
        if fit.numbered and fit.most - fit.width <= room:
            room -= max(0, fit.most - fit.width)
            fit.width, fit.numbered = max(fit.width, fit.most), False
    for fit in kept:
        more = max(0, _widest(fit.full) - fit.width)
        if more <= room:
            fit.width, fit.long, room = fit.width + more, True, room - more
    gap = 2 if room >= len(kept) - 1 else 1
    room -= (gap - 1) * (len(kept) - 1)
    grow("wrap")
    return gap


def short_names(names: Sequence[str], width: int, footnotes: dict[str, int]) -> list[str]:
    """The names, those longer than `width` as `DSA [1]`; these are numbered in `footnotes`, each once."""
    short = {}
    for name in dict.fromkeys(names):
        if cell_len(name) > width:
            number = footnotes.setdefault(name, len(footnotes) + 1)
            start = set_cell_size(name.split(" ")[0], width - 4).rstrip() if width > 4 else ""
            short[name] = f"[{number}] LEAK" if name.endswith(" LEAK") else f"{start} [{number}]".strip()
    return [short.get(name, name) for name in names]


def _missing(table: Fitted, width: int, elsewhere: str) -> Iterator[str]:
    parts = []
    if table.left_out:
        n = len(table.left_out)
        parts.append(f"{n} column{'s' * (n > 1)} left out at {width} columns: {', '.join(table.left_out)}")
    if table.cut:
        parts.append(f"cut at {width} columns, marked {MARK}: {', '.join(table.cut)}")
    if parts:
        yield f"({'; '.join([*parts, elsewhere])})"


def _line(kept: Sequence[_Fit], parts: Sequence[Cell], gap: int, style: str) -> Text:
    line = Text(style=style)
    for i, (fit, part) in enumerate(zip(kept, parts, strict=True)):
        space = " " * (fit.width - cell_len(part.text))
        before = " " * gap * (i > 0) + ("" if fit.column.left else space)
        line.append(before).append(part.text, part.style or None).append(space if fit.column.left else "")
    line.rstrip()
    return line


def _cell(cell: str | Cell) -> Cell:
    return Cell(printable(cell)) if isinstance(cell, str) else Cell(printable(cell.text), cell.style)


def _widest(lines: Sequence[str]) -> int:
    return max(map(cell_len, lines), default=0)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - len(MARK)).rstrip() + MARK


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells, broken between words; a longer word is broken where it must be."""
    if cell_len(text) <= width:
        return [text]
    if text.isascii():
        return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
    return [line.plain.rstrip() for line in Text(text).wrap(Console(width=width), width)]
