"""`dsabench compare`: the verdict, with its uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli.list_options import ListCommand
from dsabench.cli.options import All, Baseline, Json, Store, Sweep, Where
from dsabench.metrics import compared


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("compare", cls=ListCommand, short_help="Compare variants with dense attention.")(compare)


def compare(
    sweep: Sweep = None,
    everything: All = False,
    where: Where = None,
    baseline: Baseline = "dense",
    metric: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(list(compared())[:-1])} or {list(compared())[-1]}.",
            metavar="NAME",
        ),
    ] = "val_loss",
    margin: Annotated[
        float | None,
        typer.Option(help="What still counts as not worse; else the sweep's margin.", metavar="X"),
    ] = None,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit 3 if a verdict is worse or a run leaks.")
    ] = False,
    store: Store = Path("runs"),
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated rows.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX tables (booktabs).")] = False,
) -> None:
    """Compare every variant with dense attention, seed by seed.

    The newest sweep of the store, unless told otherwise. Margin and corrections are stated under the table;
    `dsabench schema compare` describes the --json document.
    """
    forms = [
        name for name, wanted in (("json", json), ("csv", csv), ("markdown", markdown), ("latex", latex)) if wanted
    ]
    if len(forms) > 1:
        raise typer.BadParameter(f"--{' and --'.join(forms)} exclude each other; keep one")
    if margin is not None and not 0 < margin < float("inf"):
        raise typer.BadParameter(f"--margin {margin:g}: a number above 0 is accepted")

    from dsabench.analysis.compare import compare as judge
    from dsabench.analysis.scope import look_at

    found = judge(
        look_at(store, sweep=sweep, everything=everything, where=where), baseline=baseline, metric=metric, margin=margin
    )
    if forms == ["json"]:
        from dsabench.cli.views.outcome import print_json

        print_json(found.model_dump(mode="json"))
    elif forms:
        from dsabench.analysis import formats

        typer.echo(
            {"csv": formats.as_csv, "markdown": formats.as_markdown, "latex": formats.as_latex}[forms[0]](found),
            nl=False,
        )
    else:
        from dsabench.cli.views.compare_tables import comparison_lines
        from dsabench.cli.views.outcome import stdout_console

        comparison_lines(found, stdout_console())
    if fail_if_worse:
        verdicts = [row.verdict for row in found.rows]
        if not any(verdict in ("better", "not worse", "worse", "LEAK") for verdict in verdicts):
            typer.echo("error: --fail-if-worse: no comparison has a verdict, so nothing was shown to hold", err=True)
            raise typer.Exit(2)
        if "worse" in verdicts or "LEAK" in verdicts:
            raise typer.Exit(3)
