"""A comparison on stdout: tables of at most 100 columns, and what a reader must know under them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dsabench.cli.safe_text import first_line
from dsabench.cli.views.results_table_text import columns, short_names

if TYPE_CHECKING:
    from dsabench.analysis.comparison import Comparison
    from dsabench.analysis.formats import Grid

_SHOWN = 12
"""Runs without a partner that are listed before the rest are only counted."""

_ERROR = 120
"""Characters of a run's error; `dsabench runs show` prints all of it."""

_NAME = 14
"""Characters of the variant column; longer names are numbered and spelt out below."""

_RUNG = 25
"""The same of a ladder's rungs."""


def comparison_lines(found: Comparison, console: Console) -> None:
    """Print the comparison: of each setting the verdicts, in words, and the costs (of a ladder all rungs in one table);
    then the notes."""
    from dsabench.analysis.formats import best_rate_grid, cost_grid, ladder_grid, notes, verdict_grid
    from dsabench.analysis.variants import display_name
    from dsabench.analysis.wording import mean_lines, trend_lines

    def say(line: str = "", style: str = "") -> None:
        console.print(Text(line, style=style), soft_wrap=not console.is_terminal)

    say(f"{found.metric} of {found.scope}, against {display_name(found.baseline)}", "bold")
    for line in found.warnings:
        say(f"WARNING: {line}.", "bold")
    if found.rungs and found.tables:
        ladder, footnotes = _fitting(ladder_grid(found), "rung", _RUNG)
        ladder, more = _fitting(ladder)
        say()
        say(ladder.title, "bold")
        console.print(columns(ladder.headings, ladder.rows, console, ladder.left), crop=False)
        for line in [*footnotes, *more]:
            say(line)
        say("(--markdown, --csv and --json have the p values, costs and sentences of each rung)")
    for table in [] if found.rungs else found.tables:
        say()
        if table.setting:
            say(f"Setting: {table.setting}", "bold")
        verdicts, footnotes = _fitting(verdict_grid(table, found))
        console.print(columns(verdicts.headings, verdicts.rows, console, verdicts.left), crop=False)
        say()
        for line in [*table.sentences, *mean_lines(table, found.baseline), *trend_lines(table)]:
            say(line)
        say()
        costs, _ = _fitting(cost_grid(table))
        console.print(columns(costs.headings, costs.rows, console, costs.left), crop=False)
        for line in footnotes:
            say(line)
    if found.best_rates:
        rates = best_rate_grid(found)
        say()
        say(rates.title, "bold")
        rates, footnotes = _fitting(rates)
        console.print(columns(rates.headings, rates.rows, console, rates.left), crop=False)
        for line in footnotes:
            say(line)
    say()
    for line in [*notes(found, ladder_alone=bool(found.rungs)), *_left_out(found)]:
        say(line)


def _fitting(grid: Grid, column: str = "variant", width: int = _NAME) -> tuple[Grid, list[str]]:
    place = grid.headings.index(column)
    names, footnotes = short_names([row[place] for row in grid.rows], width)
    rows = [(*row[:place], name, *row[place + 1 :]) for row, name in zip(grid.rows, names, strict=True)]
    return grid._replace(rows=rows), footnotes


def _left_out(found: Comparison) -> Iterator[str]:
    if not found.left_out:
        return
    yield f"In no pair: {len(found.left_out)} run{'s' if len(found.left_out) > 1 else ''}"
    for run in found.left_out[:_SHOWN]:
        error = first_line(run.error, _ERROR)
        yield f"  {run.run_id}: {run.reason}" + (f": {error}" if error else "")
    if len(found.left_out) > _SHOWN:
        yield f"  and {len(found.left_out) - _SHOWN} more (--json lists all)"
