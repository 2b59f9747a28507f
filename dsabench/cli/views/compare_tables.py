"""A comparison on stdout: warnings and the answer first, then tables as wide as the terminal, then notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dsabench.cli.safe_text import first_line
from dsabench.cli.views.text_table import Cell, Column, Row, footnote_lines, print_table

if TYPE_CHECKING:
    from dsabench.analysis.comparison import Comparison
    from dsabench.analysis.grid import Grid

_SHOWN = 12
"""Runs without a partner, and lines of the answer, that are listed before the rest are only counted."""

_ERROR = 120
"""Characters of a run's error; `dsabench runs show` prints all of it."""

_STYLES = {
    "better": "green",
    "not worse": "green",
    "worse": "red",
    "LEAK": "bold red",
    "inconclusive": "yellow",
    "no verdict": "yellow",
}
"""Colours of the verdicts."""

_NARROW = {
    "variant": Column("variant", left=True, least=14, shorten="number"),
    "rung": Column("rung", left=True, least=25, shorten="number"),
    "verdict": Column("verdict", left=True, least=12, shorten="wrap"),
    "difference [95 % CI]": Column("difference [95 % CI]", "difference\n[95 % CI]"),
    "its mean": Column("its mean", "its\nmean", drop=1),
    "pairs": Column("pairs", drop=2),
    "p": Column("p", drop=3),
    "spread": Column("spread", drop=3),
    "memory x": Column("memory x", "memory\nx", drop=1),
    "at equal FLOPs": Column("at equal FLOPs", "at equal\nFLOPs", drop=4),
    "gap": Column("gap", drop=5),
    "keys read": Column("keys read", "keys\nread", drop=2),
}
"""The columns that give way on a narrow terminal, the greatest `drop` first."""


def comparison_lines(found: Comparison, console: Console, explain: bool = False) -> None:
    """Print the comparison: what must be known first, the answer, and of each setting the verdicts, in words, and the
    costs (of a ladder all rungs in one table); then the notes. The columns are explained with `explain`, and wherever
    it is not a terminal that reads."""
    from dsabench.analysis.formats import best_settings_grid, cost_grid, ladder_grid, notes, search_grid, verdict_grid
    from dsabench.analysis.size_tables import size_grids
    from dsabench.analysis.variants import display_name
    from dsabench.analysis.wording import mean_lines, trend_lines

    def say(line: str = "", style: str = "") -> None:
        console.print(Text(line, style=style), soft_wrap=not console.is_terminal)

    footnotes: dict[str, int] = {}
    say(f"{found.metric} of {found.scope}, against {display_name(found.baseline)}", "bold")
    warning_lines(found.warnings, console)
    answer_lines(found.answer, console)
    if found.rungs and found.tables:
        ladder = ladder_grid(found)
        say()
        say(ladder.title, "bold")
        _print(ladder, [row.verdict for row in found.rows], console, footnotes)
        say("(--markdown, --csv and --json have the p values, costs and sentences of each rung)")
    for table in [] if found.rungs else found.tables:
        say()
        if table.setting:
            say(f"Setting: {table.setting}", "bold")
        verdicts = [row.verdict for row in table.rows]
        _print(verdict_grid(table, found), verdicts, console, footnotes)
        say()
        for line in [*table.sentences, *mean_lines(table, found.baseline), *trend_lines(table)]:
            say(line)
        say()
        _print(cost_grid(table), verdicts, console, footnotes)
    for grid, below in size_grids(found):
        say()
        say(grid.title, "bold")
        _print(grid, [], console, footnotes)
        for line in below:
            say(line)
    for more in (best_settings_grid(found), search_grid(found)):
        if more.rows:
            say()
            say(more.title, "bold")
            _print(more, [], console, footnotes)
    for line in footnote_lines(footnotes):
        say(line)
    say()
    explained = explain or not console.is_terminal
    for line in [*notes(found, ladder_alone=bool(found.rungs), explained=explained), *_left_out(found)]:
        say(line)
    if found.tables and not explained:
        say("--explain says what the columns and verdicts mean.", "dim")


def warning_lines(warnings: Iterable[str], console: Console) -> None:
    """Print what must be known before any number, a line each."""
    for line in warnings:
        console.print(Text(f"WARNING: {line}.", style="bold yellow"), soft_wrap=not console.is_terminal)


def answer_lines(answer: str, console: Console) -> None:
    """Print the answer in plain words, the first lines of a long one."""
    lines = answer.split("\n")
    if len(lines) > _SHOWN:
        lines = [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more (--json has all)"]
    for line in lines:
        console.print(Text(line, style="bold"), soft_wrap=not console.is_terminal)


def _print(grid: Grid, verdicts: Sequence[str], console: Console, footnotes: dict[str, int]) -> None:
    """Print a table, the verdicts of its rows in colour."""
    columns = [_column(heading, grid.left) for heading in grid.headings]
    place = grid.headings.index("verdict") if "verdict" in grid.headings else -1
    rows = []
    for i, cells in enumerate(grid.rows):
        styled = [Cell(cell, _STYLES[verdicts[i]]) if at == place else cell for at, cell in enumerate(cells)]
        rows.append(Row(styled))
    print_table(console, columns, rows, footnotes=footnotes)


def _column(heading: str, left: Sequence[str]) -> Column:
    name = heading.replace("\n", " ")
    if name.endswith(" best") and heading in left:  # settings, a field a word
        return Column(name, heading, left=True, least=20, shorten="wrap")
    return _NARROW.get(name) or Column(name, heading, left=heading in left)


def _left_out(found: Comparison) -> Iterator[str]:
    if not found.left_out:
        return
    yield f"In no pair: {len(found.left_out)} run{'s' if len(found.left_out) > 1 else ''}"
    for run in found.left_out[:_SHOWN]:
        error = first_line(run.error, _ERROR)
        yield f"  {run.run_id}: {run.reason}" + (f": {error}" if error else "")
    if len(found.left_out) > _SHOWN:
        yield f"  and {len(found.left_out) - _SHOWN} more (--json lists all)"
