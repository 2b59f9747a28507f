"""The runs that `dsabench export` writes, and its words about them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dsabench.analysis.scope import look_at
from dsabench.cli.safe_text import first_line, printable
from dsabench.cli.views.outcome import print_json
from dsabench.store import find_name
from dsabench.trackers.export import Outcome
from dsabench.trackers.names import TRACKERS
from dsabench.trackers.tracker import Run


def chosen(
    store: Path, runs: Sequence[str] | None, sweep: str | None, everything: bool, where: str | None, follow: bool
) -> list[str]:
    """The ids of the runs that a user named or chose; with `follow` also those of a sweep that have not begun."""
    if runs:
        return list(dict.fromkeys(find_name(store, run) for run in runs))
    scope = look_at(store, sweep=sweep, everything=everything, where=where)
    names = list(dict.fromkeys(map(str, scope.runs["run_id"])))
    if follow and where is None and scope.sweep is not None:
        names = list(dict.fromkeys([*names, *scope.sweep.run_ids]))
    elif scope.notes:
        for note in scope.notes:
            print(printable(f"note: {note}"), file=sys.stderr)
    print(printable(f"{scope.title}: {len(names)} runs"), file=sys.stderr)
    return names


def tell_of(run: Run) -> None:
    """One line for a run that was written."""
    print(printable(f"{run.name}  {run.status}"), file=sys.stderr)


def say_what_was_written(outcome: Outcome, to: str, out: Path, as_json: bool) -> None:
    """The result on stdout, what failed on stderr."""
    for run_id, why in outcome.failed.items():
        print(f"error: {printable(run_id)}: {first_line(why)}", file=sys.stderr)
    if as_json:
        print_json(
            {
                "to": to,
                "out": str(out),
                "written": outcome.written,
                "unchanged": outcome.same,
                "failed": outcome.failed,
            }
        )
        return
    same = f", {len(outcome.same)} were there as they are" if outcome.same else ""
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    print(printable(f"Written: {out} ({len(outcome.written)} runs for {TRACKERS[to].title}{same}{failed})"))
    print(printable(f"To see them: {TRACKERS[to].view.format(out=out)}"))
