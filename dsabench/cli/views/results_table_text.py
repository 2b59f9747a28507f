"""The experiment's table on stdout, and the notes that it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dsabench.analysis.step_times_check import MOST_SPREAD
from dsabench.analysis.variants import display_name, scored_unit
from dsabench.analysis.wording import RECALL, doubted, number, recall, recall_lines
from dsabench.cli.safe_text import first_line
from dsabench.cli.views.text_table import Cell, Column, Row, print_table, say
from dsabench.metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd

_LOSS, _ACCURACY, _TIME = (METRICS[name].title for name in ("val_loss", "val_accuracy", "step_ms"))
_COLUMNS = (
    Column("length"),
    Column("attention", left=True, shorten="number", least=9),
    Column("seeds"),
    Column(_LOSS),
    Column("minus dense"),
    Column(f"{_ACCURACY} %", drop=1),
    Column(_TIME, short=_TIME.replace("/", "/\n")),
    Column(RECALL.replace("\n", " "), short=RECALL, drop=2),
)

_SHOWN = 10
"""Runs that are listed as left out, before the rest are only counted."""


def experiment_lines(table: pd.DataFrame, console: Console, left_out: pd.DataFrame | None = None) -> None:
    """Print `table` (analysis.experiment_table) and the notes that it needs.

    `left_out` (analysis.not_averaged) is listed below it, run by run.
    """
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    names = [display_name(str(row["variant"])) + (" LEAK" if row["leak"] else "") for row in rows]
    if rows:
        print_table(console, _COLUMNS, _cells(rows, names))
    else:
        say(console, "No run has a result.")
    say(console, *_notes(rows), *_list(left_out))


def _noisy(row: dict[str, Any]) -> bool:
    """Whether the step times of a row's seeds differ by more than their work explains."""
    return bool(row["step_ms_max"] > MOST_SPREAD * row["step_ms_min"])


def _cells(rows: list[dict[str, Any]], names: list[str]) -> Iterator[Row]:
    previous = None
    for row, name in zip(rows, names, strict=True):
        n, total = row["n"], row["n_runs"]
        cells = (
            "" if row["length"] == previous else str(row["length"]),
            Cell(name, "red" if row["leak"] else ""),
            str(n) if n == total else f"{n}/{total}",
            _with_sd(row["val_loss_mean"], row["val_loss_sd"], ".3f"),
            _with_sd(row["diff_mean"], row["diff_sd"], "+.3f"),
            number(100 * row["val_accuracy_mean"], ".1f"),
            doubted(_three_digits(row["step_ms_mean"]), _noisy(row)),
            recall(row.__getitem__),
        )
        yield Row(cells, below=["selects everything, as dense attention does"] if row["selects_everything"] else [])
        previous = row["length"]


def _notes(rows: list[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    several = any(row["n"] > 1 for row in rows)
    scored = scored_unit(row["task_accuracy"] for row in rows if row["n"])
    loss = METRICS["val_loss"].per(scored)
    yield f"{loss.title}: {loss.unit}, {'mean over seeds' if several else 'one seed'}; {loss.better} is better."
    if several:
        yield "+-: standard deviation over seeds (in dsabench compare: half of an interval)."
    if any(row["diff_n"] for row in rows):
        yield "minus dense: difference to dense of the same seed; verdicts: dsabench compare."
    yield from recall_lines(row.__getitem__ for row in rows)
    of_text = [row for row in rows if not math.isfinite(row["task_accuracy"])]
    unigram = [row["unigram_loss"] for row in of_text if math.isfinite(row["unigram_loss"])]
    if unigram:
        known = METRICS["unigram_loss"]
        yield f"{known.words.capitalize()}: {_span(unigram, '.3f')} {known.unit}."
    if seen := [row["epochs"] for row in rows if math.isfinite(row["epochs"])]:
        known = METRICS["epochs"]
        yield f"{known.words.capitalize()}: {_span(seen, f'.{known.digits}f')} ({known.meaning})."
    tasks = [row for row in rows if math.isfinite(row["task_accuracy"])]
    if tasks:
        guess = METRICS["unigram_loss"].per("answer")
        nats = _span([row["unigram_loss"] for row in tasks], ".3f")
        right = _span([100 * row["chance_accuracy"] for row in tasks], ".1f")
        yield f"{guess.words.capitalize()}: {nats} {guess.unit}, {right} % right."
    if any(map(_noisy, rows)):
        spread = max(row["step_ms_max"] / row["step_ms_min"] for row in rows if row["step_ms_min"] > 0)
        yield f"({_TIME} in brackets): the seeds of a row took up to {spread:.2f}-fold different times."
    if any(row["n"] < row["n_runs"] for row in rows):
        yield "seeds n/m: n of m runs finished and are averaged."
    if any(row["leak"] for row in rows):
        yield "LEAK: this attention sees later tokens; its loss means nothing."


def _list(left_out: pd.DataFrame | None) -> Iterator[str]:
    if left_out is None or left_out.empty:
        return
    yield "Not averaged:"
    for run in left_out.head(_SHOWN).to_dict("records"):
        error = first_line(run["error"] or "")
        yield f"  {run['run_id']} {run['reason']}" + (f": {error}" if error else "")
    if len(left_out) > _SHOWN:
        yield f"  and {len(left_out) - _SHOWN} more"


def _span(values: Sequence[float], form: str) -> str:
    """`3.466`, or `2.079 to 3.466`."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _with_sd(mean: float, sd: float, form: str) -> str:
    spread = f"+-{sd:.3f}" if math.isfinite(sd) else ""
    return f"{mean:{form}}{spread}" if math.isfinite(mean) else "-"


def _three_digits(value: float) -> str:
    if not math.isfinite(value) or value < 0:
        return "-"
    return f"{value:.{min(3, max(0, 2 - math.floor(math.log10(value))))}f}" if value > 0 else "0"
