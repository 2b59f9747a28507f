"""The removal of runs for a reader: the list, the question before it, and the answer afterwards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from dsabench.analysis.scope import choose
from dsabench.cli.safe_text import printable
from dsabench.errors import ScopeError
from dsabench.store import check_removable, find_name, load_runs, remove_runs, run_files, sweeps_naming


def named(store: Path, runs: Sequence[str]) -> list[str]:
    """The ids of the runs that a user named by the starts of their ids, each once."""
    return list(dict.fromkeys(find_name(store, run) for run in runs))


def chosen(store: Path, sweep: str | None, where: str | None) -> list[str]:
    """The ids of the runs of a sweep for which a condition holds; when there are none it says so."""
    from dsabench.cli.views.runs_table import nothing

    found = choose(store, sweep=sweep, where=where)
    if found.runs.empty:
        print(f"{nothing(found, where)} Nothing was removed.")
    return [str(name) for name in found.runs["run_id"]]


def remove(store: Path, names: Sequence[str], yes: bool) -> None:
    """Remove these runs after a question, unless `yes`; without a terminal to ask on, refuse."""
    check_removable(store, names)
    if not yes and not _agreed(store, names):
        print("Nothing was removed.")
        return
    for removed in remove_runs(store, names):
        print(f"Removed: {printable(removed)}")
    for sweep, count in sweeps_naming(store, names).items():
        print(
            f"Sweep {printable(sweep)} still names {count} of them: `dsabench compare` will call them missing, "
            "and the sweep's command trains them again."
        )


def _agreed(store: Path, names: Sequence[str]) -> bool:
    what = f"{len(names)} run{'s' * (len(names) != 1)}"
    if not sys.stdin.isatty():
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ScopeError(f"no terminal to ask on: --yes removes {what} without asking ({listed})")
    from dsabench.cli.console import stdout_console
    from dsabench.cli.views.runs_table import print_runs

    runs = load_runs(store)
    print_runs(runs[runs["run_id"].isin(names)], None, stdout_console())
    size = sum(sum(run_files(store, name).values()) for name in names)
    try:
        return typer.confirm(f"Remove {what} ({size / 1e6:,.1f} MB)?", err=True)
    except typer.Abort:  # Ctrl-C, or the end of the input
        print("\nNothing was removed.", file=sys.stderr)
        raise typer.Exit(130) from None
