"""The lines that `dsabench export` prints: each run as it is written, and the result."""

from __future__ import annotations

import sys
from pathlib import Path

from dsabench.cli.safe_text import first_line, printable
from dsabench.cli.views.json_document import print_json
from dsabench.plain import count
from dsabench.trackers.export import Outcome
from dsabench.trackers.names import TARGETS
from dsabench.trackers.tracker import Run


def tell_of(run: Run) -> None:
    """Print a line on stderr for a run that was written."""
    print(printable(f"{run.name}  {run.status}"), file=sys.stderr)


def say_what_was_written(outcome: Outcome, to: str, out: Path, as_json: bool) -> None:
    """Print the result on stdout, and what failed on stderr."""
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
    runs = count(len(outcome.written), "run")
    print(printable(f"Written: {out} ({runs} for {TARGETS[to].title}{same}{failed})"))
    if outcome.written or outcome.same:
        print(printable(f"To see them: {TARGETS[to].view.format(out=out)}"))
