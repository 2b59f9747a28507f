"""The difference between two runs for a reader, section by section, in 80 columns where it can be."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

from dsabench.cli.safe_text import first_line, printable
from dsabench.reproduction.compare_records import Deviation, Records
from dsabench.reproduction.difference import RunDifference, difference
from dsabench.reproduction.environments import Change, text

_WIDTH = 79
_NAME = 34
"""Most characters of the column of names; longer names push their values along."""


def print_difference(found: RunDifference) -> None:
    """Print the difference, the summary first."""
    for line in wrapped(found.summary):
        print(line)
    several = found.stores[0] != found.stores[1]
    for letter, run, store in zip("AB", (found.a, found.b), found.stores, strict=True):
        leak = " LEAK" if run.summary.get("leak") else ""
        where = f", in {store}" if several else ""
        print(printable(f"  {letter}  {run.run_id}  {run.status}{leak}, {run.updated:%Y-%m-%d %H:%M} UTC{where}"))
    moved = ("the same content at another path", found.moved)
    for title, changes in (("spec", found.spec), moved, ("environment", found.environment)):
        for line in change_lines(title, changes):
            print(line)
    for line in change_lines("outcome", found.outcome, numbers=True):
        print(line)
    if found.records is not None:
        print("records, step by step")
        for line in record_lines(found.records):
            print(f"  {line}")
    if found.problem:
        print(f"records\n  {printable(found.problem)}")
    equal = [name for name, same in found.digests.items() if same]
    print("equal")
    print(f"  by digest   {printable(', '.join(equal)) or 'nothing'}")
    print(
        f"  by value    {found.shared['spec']} spec fields, {found.shared['environment']} entries of the environment, "
        f"{found.shared['outcome']} outcomes"
    )
    if other := [name for name, same in found.digests.items() if not same]:
        print(f"other by digest\n  {printable(', '.join(other))}")


def change_lines(title: str, changes: Sequence[Change], numbers: bool = False) -> Iterator[str]:
    """A table of what differs; a row too long for a line is put on three. `numbers`: with a column b - a."""
    rows = [(printable(c.field), _cell(c.a), _cell(c.b), _difference(c) if numbers else "") for c in changes]
    if not rows:
        return
    names = max(len(title) - 2, min(_NAME, max(cell_len(row[0]) for row in rows)))
    room = _WIDTH - 2 - names - 4 - (14 if numbers else 0)
    short = [row for row in rows if cell_len(row[1]) + cell_len(row[2]) <= room and cell_len(row[0]) <= names]
    widths = [max([cell_len(row[i]) for row in short] + [1]) for i in (1, 2)]
    while sum(widths) > room:  # each value fits by itself, but not beside the longest of the other column
        longest = max(short, key=lambda row: max(cell_len(row[1]), cell_len(row[2])))
        short.remove(longest)
        widths = [max([cell_len(row[i]) for row in short] + [1]) for i in (1, 2)]
    heading = _padded(title, names + 4) + _padded("A", widths[0] + 2) + _padded("B", widths[1] + 2)
    yield (heading + ("b - a" if numbers else "")).rstrip() if short else title
    for row in rows:
        if row in short:
            cells = f"  {_padded(row[0], names)}  {_padded(row[1], widths[0])}  {_padded(row[2], widths[1])}  {row[3]}"
            yield cells.rstrip()
        else:
            yield f"  {row[0]}" + (f"  {row[3]}" if row[3] else "")
            yield f"    A  {row[1]}"
            yield f"    B  {row[2]}"


def record_lines(records: Records) -> Iterator[str]:
    """How many records agree, the first that does not, and how far the losses are apart."""
    kinds = " and ".join(f"{count} {kind}" for kind, count in records.counts.items())
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


def wrapped(line: str, indent: str = "  ") -> list[str]:
    """A sentence in lines of 79 characters; a longer word is left whole."""
    return textwrap.wrap(
        printable(line), _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


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


def _padded(words: str, width: int) -> str:
    return words + " " * (width - cell_len(words))
