"""The table of `dsabench runs`: a line a run, and below it what is wrong with the run."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from dsabench.analysis.scope import Choice
from dsabench.cli.safe_text import first_line, printable
from dsabench.cli.views.text_table import Column, Row, print_table
from dsabench.errors import ScopeError
from dsabench.metrics import METRICS, Metric
from dsabench.plain import count
from dsabench.spec.messages import near_miss
from dsabench.store.table import DAMAGED

_HEADINGS = {
    "run_id": "id",
    **{name: name for name in ("status", "attention", "length", "seed")},
    **{name: METRICS[name].title for name in ("steps", "val_loss", "step_ms")},
    "updated": "updated (UTC)",
}
"""The columns that are shown when nobody chooses, and their headings."""

_ORIGIN = {"environment.start.run": "from"}
"""The column that is shown where a run starts from another, and its heading."""

_DROPS = {"environment.start.run": 6, "attention": 5, "length": 4, "seed": 3, "steps": 2, "step_ms": 1}
"""What goes first where a terminal is too narrow: the id says attention, length and seed, too."""

_STYLES = {"failed": "red", "damaged": "red", "unreadable": "red", "interrupted": "yellow", "running": "cyan"}


def known_columns(runs: pd.DataFrame, columns: Sequence[str] | None) -> list[str] | None:
    """The columns that a user asked for, by their names in the index or by the table's headings.

    Raises:
        ScopeError: there is no such column.
    """
    return None if columns is None else list(dict.fromkeys(_known(runs, name, "--columns") for name in columns))


def ordered(runs: pd.DataFrame, sort: str, reverse: bool) -> pd.DataFrame:
    """The runs by a column, `-` before its name turns the order round; where it is missing they come last.

    Raises:
        ScopeError: there is no such column.
    """
    column = _known(runs, sort.removeprefix("-"), "--sort")
    return runs.sort_values(column, ascending=sort.startswith("-") == reverse, kind="stable", na_position="last")


def documents(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """A mapping a run, JSON values only: null where a value is missing, times in ISO 8601."""
    columns = {}
    for name in runs.columns:
        values = runs[name].astype(object)
        cells = zip(values, values.isna(), strict=True)
        columns[str(name)] = [
            None if missing else value.isoformat() if isinstance(value, pd.Timestamp) else value
            for value, missing in cells
        ]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def nothing(chosen: Choice, where: str | None) -> str:
    """What is said in place of a table without rows."""
    if not chosen.total:
        return printable(f"No runs: {chosen.title}.")
    return printable(f"No run: --where {where!r} keeps none of the {chosen.total} ({chosen.title}).")


def print_runs(runs: pd.DataFrame, columns: Sequence[str] | None, console: Console) -> None:
    """Print a line a run, and below it what must be seen of the run; in colour in a terminal."""
    rows = documents(runs)
    there = [name for name in _ORIGIN if name in runs and runs[name].notna().any()]
    chosen = [*_HEADINGS, *there] if columns is None else list(columns)
    cells = zip(*(_cells(name, rows) for name in chosen), strict=True)
    print_table(
        console,
        [_column(name, runs, i + 1 if columns else _DROPS.get(name, 0)) for i, name in enumerate(chosen)],
        [
            Row(line, _style(row), _remarks(row, with_status="status" in chosen))
            for line, row in zip(cells, rows, strict=True)
        ],
        rule=False,
        elsewhere="the id says attention, length and seed, too; a wider terminal or --json shows all"
        if columns is None
        else "a wider terminal or --json shows them",
    )


def print_counts(runs: pd.DataFrame, hidden: int, limit: int | None) -> None:
    """Print how many runs there are of each status, and how many the table leaves out."""
    counts = Counter(str(status) for status in runs["status"])
    several = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    left_out = f"; {hidden} of them are not shown (--limit {limit})" if hidden else ""
    print(printable(f"{len(runs)} run{'s' * (len(runs) != 1)}: {several}{left_out}"))
    if counts.keys() & set(DAMAGED):
        print("note: damaged runs are never judged; `dsabench runs verify` says what to do", file=sys.stderr)
    if n := int((runs["seal"] == "unsealed").sum()):
        note = f"note: {count(n, 'run')} without a seal, stored before 0.3; `dsabench runs seal --all` checks and seals"
        print(note, file=sys.stderr)


def _known(runs: pd.DataFrame, wanted: str, option: str) -> str:
    names = [str(name) for name in runs.columns]
    aliases = {heading: name for name, heading in _HEADINGS.items()}
    if wanted in names:
        return wanted
    if wanted in aliases:
        return aliases[wanted]
    hint = near_miss(wanted, names) or "; `dsabench runs --limit 1 --json` shows all of them"
    raise ScopeError(f"{option} {wanted}: no such column in the index{hint}")


def _column(name: str, runs: pd.DataFrame, drop: int) -> Column:
    number = pd.api.types.is_numeric_dtype(runs[name]) and runs[name].dtype != "boolean"
    if name == "run_id":
        return Column(_HEADINGS[name], left=True)
    return Column((_HEADINGS | _ORIGIN).get(name, name), left=not number, drop=drop, least=0 if number else 24)


def _cells(name: str, rows: list[dict[str, Any]]) -> list[str]:
    cells = [_cell(name, row[name]) for row in rows]
    if name == "status":
        cells = [f"{cell} LEAK" if row["leak"] else cell for cell, row in zip(cells, rows, strict=True)]
    return cells


def _style(row: dict[str, Any]) -> str:
    return "red" if row.get("leak") else _STYLES.get(row["status"], "")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _number(METRICS.get(name), value) if math.isfinite(value) else str(value)
    if name in ("created", "updated"):
        return str(value)[:16].replace("T", " ")
    return printable(value)


def _number(metric: Metric | None, value: float) -> str:
    """One run's value has a digit more than a mean over seeds, but for times and memory, which are not that sharp."""
    if metric is None:
        return f"{value:.6g}"
    return metric.text(value, more=int(metric.source == "evaluation"))


def _remarks(row: dict[str, Any], with_status: bool) -> list[str]:
    """What must be seen of a run, whatever columns are shown."""
    remarks = []
    if row.get("error"):
        remarks.append(first_line(row["error"]) if with_status else f"{row['status']}: {first_line(row['error'])}")
    if row.get("leak"):
        remarks.append("LEAK: this attention sees later tokens; its loss means nothing")
    return remarks
