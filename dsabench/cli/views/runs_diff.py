"""The difference between two runs for a reader, section by section."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from dsabench.analysis.damaged_runs import STATUSES
from dsabench.cli.safe_text import first_line, printable
from dsabench.cli.views.text_table import Column, print_table, say
from dsabench.reproduction.compare_records import Deviation, Records
from dsabench.reproduction.difference import RunDifference, difference
from dsabench.reproduction.environments import Change, text
from dsabench.store.table import row_of


def damage_lines(found: RunDifference) -> list[str]:
    """A line for each of the runs that is damaged, with what is wrong."""
    rows = [row_of(store / run.run_id)[0] for run, store in zip((found.a, found.b), found.stores, strict=True)]
    return [f"run {row['run_id']} is damaged: {row['error']}" for row in rows if row["status"] in STATUSES]


def print_difference(found: RunDifference, console: Console) -> None:
    """Print the difference, the summary first."""
    say(console, printable(found.summary), style="bold")
    several = found.stores[0] != found.stores[1]
    for letter, run, store in zip("AB", (found.a, found.b), found.stores, strict=True):
        leak = " LEAK" if run.summary.get("leak") else ""
        where = f", in {store}" if several else ""
        say(
            console, printable(f"  {letter}  {run.run_id}  {run.status}{leak}, {run.updated:%Y-%m-%d %H:%M} UTC{where}")
        )
    moved = ("the same content at another path", found.moved)
    for title, changes in (("spec", found.spec), moved, ("environment", found.environment)):
        print_changes(console, title, changes)
    print_changes(console, "outcome", found.outcome, numbers=True)
    if found.records is not None:
        say(console, "records, step by step", *(f"  {line}" for line in record_lines(found.records)))
    if found.problem:
        say(console, "records", f"  {printable(found.problem)}")
    equal = [name for name, same in found.digests.items() if same]
    shared = found.shared
    say(
        console,
        "equal",
        f"  by digest   {printable(', '.join(equal)) or 'nothing'}",
        f"  by value    {shared['spec']} spec fields, {shared['environment']} entries of the environment, "
        f"{shared['outcome']} outcomes",
    )
    if other := [name for name, same in found.digests.items() if not same]:
        say(console, "other by digest", f"  {printable(', '.join(other))}")


def print_changes(console: Console, title: str, changes: Sequence[Change], numbers: bool = False) -> None:
    """Print a table of what differs. `numbers`: with a column b - a."""
    if not changes:
        return
    columns = [
        Column(title, left=True, shorten="wrap", least=24),
        Column("A", left=True, shorten="wrap", least=12),
        Column("B", left=True, shorten="wrap", least=12),
        *([Column("b - a", left=True)] if numbers else []),
    ]
    rows = [(f"  {c.field}", _cell(c.a), _cell(c.b), *([_difference(c)] if numbers else [])) for c in changes]
    print_table(console, columns, rows, rule=False)


def record_lines(records: Records) -> Iterator[str]:
    """How many records agree, the first that does not, and how far the losses are apart."""
    *most, last = [f"{count} {kind}" for kind, count in records.counts.items()]
    kinds = f"{', '.join(most)} and {last}"
    yield f"{records.same} of {records.total} the same bit for bit ({kinds}, to step {records.last_step})"
    if records.first is not None:
        yield f"first difference    {_deviation(records.first)}"
    if records.largest is not None and records.largest == records.first:
        yield "largest difference  the same one"
    elif records.largest is not None:
        yield f"largest difference  {_deviation(records.largest)}"
    elif records.first is not None:
        yield "largest difference  none of the losses differs"
    for what, places in (("missing", records.missing), ("only in the second", records.extra)):
        if places:
            kind, step = places[0]
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            yield f"{what}: the {kind} record of step {step}{more}"


def _deviation(one: Deviation) -> str:
    values = f"{_float(one.a)} -> {_float(one.b)}"
    return f"step {one.step}, {one.kind}: {printable(one.metric)} {values} ({one.size:.2g})"


def _float(value: float | None) -> str:
    return "none" if value is None else f"{value:.7g}"


def _cell(value: object) -> str:
    return "-" if value is None else first_line(text(value))


def _difference(change: Change) -> str:
    size = difference(change)
    return "" if size is None else f"{size:+.3g}" if isinstance(size, float) else f"{size:+,}"
