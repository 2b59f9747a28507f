"""`dsabench doctor`: the machine and installation examined."""

from __future__ import annotations

from pathlib import Path

import typer

from dsabench.cli.command_help import CHECKS, HelpfulCommand, epilog
from dsabench.cli.options import JsonFlag, StoreOption

_EXAMPLES = (
    ("This machine, before a first sweep", "dsabench doctor"),
    ("With the store that you will use; for a bug report or a program", "dsabench doctor --store runs --json"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "doctor",
        cls=HelpfulCommand,
        short_help="Examine this machine and installation.",
        epilog=epilog("troubleshooting", *_EXAMPLES),
        rich_help_panel=CHECKS,
    )(doctor)


def doctor(store: StoreOption = Path("runs"), json: JsonFlag = False) -> None:
    """Examine this machine and installation: what is amiss, and the mend.

    Versions, device, Triton, threads, the load now, cache and store, free disk, terminal. Each is ok, warn (it works,
    but not as well as it could) or fail. Exit 1 when one fails. Nothing is sent anywhere.
    """
    from dsabench.cli.machine_checks import FAIL, examine
    from dsabench.cli.views.doctor_lines import document, print_check, print_sum
    from dsabench.cli.views.json_document import print_json

    found = []
    for check in examine(store):
        found.append(check)
        if not json:
            print_check(check)
    if json:
        print_json(document(found))
    else:
        print_sum(found)
    raise typer.Exit(1 if any(check.state == FAIL for check in found) else 0)
