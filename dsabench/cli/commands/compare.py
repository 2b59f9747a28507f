"""`dsabench compare`: the verdict, with its uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsabench.cli.list_options import ListCommand
from dsabench.cli.options import (
    AllFlag,
    BaselineOption,
    JsonFlag,
    StoreOption,
    SweepOption,
    WhereOption,
    check_margin,
)
from dsabench.metrics import compared

if TYPE_CHECKING:
    from dsabench.analysis.comparison import Comparison

MetricOption = Annotated[
    str,
    typer.Option(
        "--metric",
        help=f"{', '.join(list(compared())[:-1])} or {list(compared())[-1]}.",
        metavar="NAME",
    ),
]
MarginOption = Annotated[
    float | None,
    typer.Option("--margin", help="Difference that still counts as not worse; else the sweep's margin.", metavar="X"),
]
FailIfWorseFlag = Annotated[bool, typer.Option("--fail-if-worse", help="Exit 3 if a verdict is worse or a run leaks.")]
CsvFlag = Annotated[bool, typer.Option("--csv", help="Print comma-separated rows.")]
MarkdownFlag = Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")]
LatexFlag = Annotated[bool, typer.Option("--latex", help="Print LaTeX tables (booktabs).")]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "compare",
        cls=ListCommand,
        short_help="Compare variants with dense attention.",
        epilog="Guide: dsabench guide verdicts",
    )(compare)


def compare(
    sweep: SweepOption = None,
    everything: AllFlag = False,
    where: WhereOption = None,
    baseline: BaselineOption = "dense",
    metric: MetricOption = "val_loss",
    margin: MarginOption = None,
    fail_if_worse: FailIfWorseFlag = False,
    store: StoreOption = Path("runs"),
    json: JsonFlag = False,
    csv: CsvFlag = False,
    markdown: MarkdownFlag = False,
    latex: LatexFlag = False,
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
    check_margin(margin)

    from dsabench.analysis.compare import compare as judge
    from dsabench.analysis.scope import look_at

    found = judge(
        look_at(store, sweep=sweep, everything=everything, where=where), baseline=baseline, metric=metric, margin=margin
    )
    _show(found, forms[0] if forms else "tables")
    if fail_if_worse:
        _fail_if_worse(found)


def _show(found: Comparison, form: str) -> None:
    """Print the comparison as json, csv, markdown or latex, or as tables and sentences."""
    if form == "tables":
        from dsabench.cli.console import stdout_console
        from dsabench.cli.views.compare_tables import comparison_lines

        comparison_lines(found, stdout_console())
    elif form == "json":
        from dsabench.cli.views.json_document import print_json

        print_json(found.model_dump(mode="json"))
    else:
        from dsabench.analysis import formats

        write = {"csv": formats.as_csv, "markdown": formats.as_markdown, "latex": formats.as_latex}[form]
        print(write(found), end="")


def _fail_if_worse(found: Comparison) -> None:
    """End with 3 when a verdict is worse or a run leaks, with 2 when there is no verdict at all."""
    verdicts = [row.verdict for row in found.rows]
    if not any(verdict in ("better", "not worse", "worse", "LEAK") for verdict in verdicts):
        typer.echo("error: --fail-if-worse: no comparison has a verdict, so nothing was shown to hold", err=True)
        raise typer.Exit(2)
    if "worse" in verdicts or "LEAK" in verdicts:
        raise typer.Exit(3)
