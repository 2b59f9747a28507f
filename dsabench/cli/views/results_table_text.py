"""The experiment's table on stdout: 80 columns wide, and plain ASCII where there is no terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dsabench.analysis.variants import display_name, scored_unit
from dsabench.analysis.wording import RECALL, number, recall, recall_lines
from dsabench.cli.console import inert_text
from dsabench.cli.safe_text import first_line
from dsabench.metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd

_PLAIN = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""SIMPLE_HEAD in ASCII: a rule under the header and nothing else."""

_LOSS, _ACCURACY, _TIME = (METRICS[name].title for name in ("val_loss", "val_accuracy", "step_ms"))
_HEADINGS = (
    *("length", "attention", "seeds", _LOSS, "minus dense"),
    *(f"{_ACCURACY} %", _TIME.replace("/", "/\n"), RECALL),
)

_LABEL = 9
"""Characters of the attention column; longer names are numbered and spelt out below the table."""

_SHOWN = 10
"""Runs that are listed as left out, before the rest are only counted."""


def experiment_lines(table: pd.DataFrame, console: Console, left_out: pd.DataFrame | None = None) -> None:
    """Print `table` (analysis.experiment_table) and the notes that it needs.

    `left_out` (analysis.not_averaged) is listed below it, run by run.
    """
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    names = [display_name(str(row["variant"])) + (" LEAK" if row["leak"] else "") for row in rows]
    labels, footnotes = short_names(names, _LABEL)
    if rows:
        console.print(columns(_HEADINGS, _cells(rows, labels), console, left=("attention",)), crop=False)
    else:
        console.print("No run has a result.")
    for line in [*footnotes, *_notes(rows), *_list(left_out)]:
        console.print(Text(line), soft_wrap=True)


class Whole:
    """A table that is never cut: on a narrower terminal the terminal wraps it."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = Measurement.get(console, options.update(max_width=10_000), self.table).maximum
        yield from console.render(self.table, options.update(width=max(needed, 1)))


def columns(headings: Sequence[str], rows: Iterable[Sequence[str]], console: Console, left: Collection[str]) -> Whole:
    """A table of texts, plain ASCII where there is no terminal; columns are right-aligned but for those in `left`."""
    box = SIMPLE_HEAD if console.is_terminal and not console.legacy_windows else _PLAIN
    shown = Table(box=box, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*map(inert_text, row))
    return Whole(shown)


def short_names(names: Sequence[str], width: int) -> tuple[list[str], list[str]]:
    """The names, those longer than `width` as `DSA [1]`, and a footnote for each of these."""
    long = [name for name in dict.fromkeys(names) if len(name) > width]
    short = {
        name: f"[{i}] LEAK" if name.endswith(" LEAK") else f"{name.split(' ')[0][: width - 4]} [{i}]"
        for i, name in enumerate(long, 1)
    }
    return [short.get(name, name) for name in names], [f"[{i}] {name}" for i, name in enumerate(long, 1)]


def _cells(rows: list[dict[str, Any]], labels: list[str]) -> Iterator[tuple[str, ...]]:
    previous = None
    for row, label in zip(rows, labels, strict=True):
        n, total = row["n"], row["n_runs"]
        yield (
            "" if row["length"] == previous else str(row["length"]),
            label,
            str(n) if n == total else f"{n}/{total}",
            _with_sd(row["val_loss_mean"], row["val_loss_sd"], ".3f"),
            _with_sd(row["diff_mean"], row["diff_sd"], "+.3f"),
            number(100 * row["val_accuracy_mean"], ".1f"),
            _three_digits(row["step_ms_mean"]),
            recall(row.__getitem__),
        )
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
    tasks = [row for row in rows if math.isfinite(row["task_accuracy"])]
    if tasks:
        guess = METRICS["unigram_loss"].per("answer")
        nats = _span([row["unigram_loss"] for row in tasks], ".3f")
        right = _span([100 * row["chance_accuracy"] for row in tasks], ".1f")
        yield f"{guess.words.capitalize()}: {nats} {guess.unit}, {right} % right."
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
