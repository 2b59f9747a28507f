"""`dsabench report`: the whole answer as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import ANSWERS, COMPARISON, OUTPUT, epilog
from dsabench.cli.list_options import ListCommand
from dsabench.cli.options import (
    AllFlag,
    BaselineOption,
    JsonFlag,
    NoPluginsFlag,
    OutOption,
    QuietFlag,
    StoreOption,
    SweepOption,
    WhereOption,
    check_margin,
    check_out,
)

MarginOption = Annotated[
    float | None,
    typer.Option(
        "--margin",
        help="Loss that still counts as not worse (nats per token); else the sweep's.",
        metavar="X",
        rich_help_panel=COMPARISON,
    ),
]
ShownRunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="Run whose selection is shown; else the newest with a checkpoint.",
        metavar="RUN",
        rich_help_panel=OUTPUT,
        autocompletion=completion.runs,
    ),
]
NoSelectionFlag = Annotated[
    bool,
    typer.Option(
        "--no-selection", help="Leave out what a trained run selects; no model is loaded then.", rich_help_panel=OUTPUT
    ),
]

_EXAMPLES = (
    ("The newest sweep", "dsabench report"),
    ("The selection of a run that you name", "dsabench report --run dsa-L64-s42"),
    ("Without a selection, into another folder", "dsabench report --no-selection --out page"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "report",
        cls=ListCommand,
        short_help="Write the whole answer as one HTML file.",
        epilog=epilog("verdicts", *_EXAMPLES),
        rich_help_panel=ANSWERS,
    )(report)


def report(
    sweep: SweepOption = None,
    everything: AllFlag = False,
    where: WhereOption = None,
    baseline: BaselineOption = "dense",
    margin: MarginOption = None,
    run: ShownRunOption = None,
    no_selection: NoSelectionFlag = False,
    store: StoreOption = Path("runs"),
    out: OutOption = Path("results"),
    no_plugins: NoPluginsFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write the verdict, its checks, tables and figures as one HTML file.

    report.html under --out fetches nothing and can be sent as it is. The newest sweep of the store, unless told
    otherwise; the same store gives the same bytes.
    """
    check_margin(margin)
    if run is not None and no_selection:
        raise typer.BadParameter("--run and --no-selection exclude each other; keep one")

    from dsabench.analysis.scope import look_at
    from dsabench.cli.console import notifier, stdout_console
    from dsabench.cli.safe_text import printable
    from dsabench.cli.views.json_document import print_json

    check_out(out)
    scope = look_at(store, sweep=sweep, everything=everything, where=where)
    from dsabench.report.report_page import plain, write_report

    written = write_report(scope, out, baseline=baseline, margin=margin, run=run, selection=not no_selection)
    notify = notifier(quiet)
    for note in written.notes:
        notify(f"note: {printable(note)}")
    if json:
        print_json(plain(written))
        return
    stdout_console().print(f"Written: {', '.join(str(path) for path in written.files)}")
