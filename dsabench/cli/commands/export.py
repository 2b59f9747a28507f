"""`dsabench export`: runs of a store as an experiment tracker shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli.options import All, Json, Store, Sweep, Where
from dsabench.trackers.names import TRACKERS


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("export", short_help="Write runs for TensorBoard, Weights & Biases or MLflow.")(export)


def export(
    to: Annotated[str, typer.Option("--to", help=f"{', '.join(TRACKERS)}.", metavar="NAME")],
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="A run's id, or the start of it; else see --sweep.")
    ] = None,
    sweep: Sweep = None,
    everything: All = False,
    where: Where = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until all chosen runs have ended; Ctrl-C ends it before.")
    ] = False,
    store: Store = Path("runs"),
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; else results/NAME.", metavar="DIR")
    ] = None,
    json: Json = False,
) -> None:
    """Write runs for an experiment tracker: every number by step, settings, summary and status.

    The runs of the newest sweep, unless told otherwise. Only reads the store, and uses no network: W&B runs are
    offline. Exporting again replaces what was written of a run. (`runs export` writes tables.)
    """
    if runs and (sweep is not None or where is not None or everything):
        raise typer.BadParameter("name the runs (RUN ...), or choose them by --sweep, --all or --where")

    from dsabench.cli.views.export_text import chosen, say_what_was_written, tell_of
    from dsabench.trackers.export import check_tracker, open_tracker
    from dsabench.trackers.export import export as write

    check_tracker(to)  # before a store is looked for
    out = Path("results", to) if out is None else out
    names = chosen(store, runs, sweep, everything, where, follow)
    tracker = open_tracker(to, out, store)
    try:
        outcome = write(store, names, tracker, follow=follow, told=tell_of)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command begins anew", err=True)
        raise typer.Exit(130) from None
    say_what_was_written(outcome, to, out, json)
    raise typer.Exit(1 if outcome.failed else 0)
