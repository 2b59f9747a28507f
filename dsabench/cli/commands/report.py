"""`dsabench report`: the whole answer as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        "--margin", help="Loss that still counts as not worse (nats per token); else the sweep's.", metavar="X"
    ),
]
ShownRunOption = Annotated[
    str | None,
    typer.Option("--run", help="Run whose selection is shown; else the newest with a checkpoint.", metavar="RUN"),
]
NoSelectionFlag = Annotated[
    bool, typer.Option("--no-selection", help="Leave out what a trained run selects; no model is loaded then.")
]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "report",
        cls=ListCommand,
        short_help="Write the whole answer as one HTML file.",
        epilog="Guide: dsabench guide verdicts",
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
