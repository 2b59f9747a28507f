"""`dsabench runs verify` and `runs seal`: stored runs compared with what was written, and sealed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import STORED
from dsabench.cli.options import JsonFlag, StoreOption

RunsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN", help="A run's id, or the start of it.", autocompletion=completion.runs),
]
EveryRunFlag = Annotated[bool, typer.Option("--all", help="All runs of the store.", rich_help_panel=STORED)]

EXAMPLES = {
    "verify": (
        ("Everything in the store: records, metrics, weights, sweeps, caches", "dsabench runs verify"),
        ("One run", "dsabench runs verify dsa-L64-s42"),
        ("The same for a program", "dsabench runs verify --json"),
    ),
    "seal": (
        ("Runs of versions before 0.3, after the same checks", "dsabench runs seal --all"),
        ("One run", "dsabench runs seal dsa-L64-s42"),
    ),
}


def verify(
    runs: RunsArgument = None,
    everything: EveryRunFlag = False,
    store: StoreOption = Path("runs"),
    json: JsonFlag = False,
) -> None:
    """Compare runs with what was written, every byte: record, metrics, weights. Exit code 1: something is damaged.

    All of the store with its sweeps, unless runs are named (--all is the default here). It says what to do about each
    damaged run, and changes nothing. `dsabench schema verify` describes the --json document.
    """
    from dsabench.cli.views import runs_rm, runs_verify

    _exclude(runs, everything)
    found = runs_verify.checked(store, runs_rm.named(store, runs) if runs else None)
    runs_verify.print_health(found, json)
    raise typer.Exit(0 if found.ok else 1)


def seal(
    runs: RunsArgument = None,
    everything: EveryRunFlag = False,
    store: StoreOption = Path("runs"),
) -> None:
    """Seal runs that were stored before 0.3, so that damage is noticed from now on.

    Each is checked first as far as it can be without a seal, and a damaged one is refused by name. Runs that have a
    seal, and those that train, stay as they are; earlier versions still read what is sealed.
    """
    from dsabench.cli.views import runs_rm, runs_verify

    _exclude(runs, everything)
    if not runs and not everything:
        raise typer.BadParameter("name the runs (RUN ...), or choose all of them by --all")
    whole = runs_verify.seal_and_print(store, runs_rm.named(store, runs) if runs else None)
    raise typer.Exit(0 if whole else 1)


def _exclude(runs: list[str] | None, everything: bool) -> None:
    if runs and everything:
        raise typer.BadParameter("name the runs (RUN ...), or choose all of them by --all")
