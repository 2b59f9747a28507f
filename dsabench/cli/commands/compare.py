"""`dsabench compare`: the verdict, with its uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import ANSWERS, COMPARISON, OUTPUT, epilog
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
        rich_help_panel=COMPARISON,
        autocompletion=completion.metrics,
    ),
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        "--margin",
        help="Difference that still counts as not worse; else the sweep's margin.",
        metavar="X",
        rich_help_panel=COMPARISON,
    ),
]
FailIfWorseFlag = Annotated[
    bool,
    typer.Option(
        "--fail-if-worse",
        help="Exit 3 if a verdict is worse or a run leaks, 2 if none can be given.",
        rich_help_panel=COMPARISON,
    ),
]
ExplainFlag = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Say under the tables what columns and verdicts mean (files always do).",
        rich_help_panel=OUTPUT,
    ),
]
CsvFlag = Annotated[bool, typer.Option("--csv", help="Print comma-separated rows.", rich_help_panel=OUTPUT)]
MarkdownFlag = Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.", rich_help_panel=OUTPUT)]
LatexFlag = Annotated[bool, typer.Option("--latex", help="Print LaTeX tables (booktabs).", rich_help_panel=OUTPUT)]

_EXAMPLES = (
    ("The newest sweep of the store", "dsabench compare"),
    ("Another measure, at one length only", "dsabench compare --metric val_accuracy --where 'length == 256'"),
    ("Against DSA in place of dense attention", "dsabench compare --baseline dsa"),
    ("Tables for a paper", "dsabench compare --markdown"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "compare",
        cls=ListCommand,
        short_help="Compare variants with dense attention.",
        epilog=epilog("verdicts", *_EXAMPLES),
        rich_help_panel=ANSWERS,
    )(compare)


def compare(
    sweep: SweepOption = None,
    everything: AllFlag = False,
    where: WhereOption = None,
    baseline: BaselineOption = "dense",
    metric: MetricOption = "val_loss",
    margin: MarginOption = None,
    explain: ExplainFlag = False,
    fail_if_worse: FailIfWorseFlag = False,
    store: StoreOption = Path("runs"),
    json: JsonFlag = False,
    csv: CsvFlag = False,
    markdown: MarkdownFlag = False,
    latex: LatexFlag = False,
) -> None:
    """Compare every variant with dense attention, seed by seed.

    The newest sweep of the store, unless told otherwise. What fails is said first, then the answer in plain words.
    `dsabench schema compare` describes the --json document.
    """
    forms = [
        name for name, wanted in (("json", json), ("csv", csv), ("markdown", markdown), ("latex", latex)) if wanted
    ]
    if len(forms) > 1:
        raise typer.BadParameter(f"--{' and --'.join(forms)} exclude each other; keep one")
    if explain and forms:
        raise typer.BadParameter(f"--explain and --{forms[0]} exclude each other: --explain is of the printed tables")
    check_margin(margin)

    from dsabench.analysis.compare import compare as judge
    from dsabench.analysis.scope import look_at

    found = judge(
        look_at(store, sweep=sweep, everything=everything, where=where), baseline=baseline, metric=metric, margin=margin
    )
    _show(found, forms[0] if forms else "tables", explain)
    if fail_if_worse:
        _fail_if_worse(found)


def _show(found: Comparison, form: str, explain: bool) -> None:
    """Print the comparison as json, csv, markdown or latex, or as tables and sentences."""
    if form == "tables":
        from dsabench.cli.console import stdout_console
        from dsabench.cli.views.compare_tables import comparison_lines

        comparison_lines(found, stdout_console(), explain)
    elif form == "json":
        from dsabench.cli.views.json_document import print_json

        print_json(found.model_dump(mode="json"))
    else:
        from dsabench.analysis import formats

        write = {"csv": formats.as_csv, "markdown": formats.as_markdown, "latex": formats.as_latex}[form]
        print(write(found), end="")


def _fail_if_worse(found: Comparison) -> None:
    """End with 3 when a verdict is worse or a run leaks, with 2 when a verdict is withheld or there is none at all."""
    verdicts = [row.verdict for row in found.rows]
    n, withheld, unsettled = len(verdicts), verdicts.count("no verdict"), verdicts.count("inconclusive")
    if "worse" in verdicts or "LEAK" in verdicts:
        raise typer.Exit(3)
    if n == unsettled:
        typer.echo("error: --fail-if-worse: no comparison has a verdict, so nothing was shown to hold", err=True)
        raise typer.Exit(2)
    if withheld:
        reasons = ", ".join(dict.fromkeys(row.withheld for row in found.rows if row.withheld))
        typer.echo(
            f"error: --fail-if-worse: {withheld} of {n} comparison{'s' * (n > 1)} proved nothing ({reasons}); --where "
            "chooses others",
            err=True,
        )
        raise typer.Exit(2)
    if unsettled:
        typer.echo(f"note: --fail-if-worse: {unsettled} of {n} comparisons are inconclusive, and passed", err=True)
