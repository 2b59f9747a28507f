"""`dsabench report`: the whole answer as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli.list_options import ListCommand
from dsabench.cli.options import All, Baseline, Json, NoPlugins, Out, Quiet, Store, Sweep, Where


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("report", cls=ListCommand, short_help="Write the whole answer as one HTML file.")(report)


def report(
    sweep: Sweep = None,
    everything: All = False,
    where: Where = None,
    baseline: Baseline = "dense",
    margin: Annotated[
        float | None,
        typer.Option(help="What still counts as not worse (nats per token); else the sweep's.", metavar="X"),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Whose selection is shown; else the newest with a checkpoint.", metavar="RUN"),
    ] = None,
    no_selection: Annotated[
        bool, typer.Option("--no-selection", help="Without what a trained run selects (loads no model).")
    ] = False,
    store: Store = Path("runs"),
    out: Out = Path("results"),
    no_plugins: NoPlugins = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the verdict, its checks, tables and figures as one HTML file.

    report.html under --out fetches nothing and can be sent as it is. The newest sweep of the store, unless told
    otherwise; the same store gives the same bytes.
    """
    if margin is not None and not 0 < margin < float("inf"):
        raise typer.BadParameter(f"--margin {margin:g}: a number above 0 is accepted")
    if run is not None and no_selection:
        raise typer.BadParameter("--run and --no-selection exclude each other; keep one")

    from dsabench.analysis.scope import look_at
    from dsabench.cli.progress import stderr_console
    from dsabench.cli.safe_text import printable
    from dsabench.cli.views.outcome import check_out, print_json, stdout_console

    check_out(out)
    scope = look_at(store, sweep=sweep, everything=everything, where=where)
    from dsabench.report.report_page import plain, write_report

    written = write_report(scope, out, baseline=baseline, margin=margin, run=run, selection=not no_selection)
    if not quiet:
        for note in written.notes:
            stderr_console().print(f"note: {printable(note)}")
    if json:
        print_json(plain(written))
        return
    stdout_console().print(f"Written: {', '.join(str(path) for path in written.files)}")
