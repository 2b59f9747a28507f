"""`dsabench runs`: the runs of a store listed, shown, compared, removed, verified, sealed, and exported as a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import ANSWERS, OUTPUT, STORED, HelpfulCommand, HelpfulGroup, epilog
from dsabench.cli.commands import runs_seals
from dsabench.cli.list_options import ListCommand, texts
from dsabench.cli.options import AllFlag, JsonFlag, RunArgument, StoreOption, WhereOption
from dsabench.errors import ScopeError
from dsabench.plain import count, is_or_are

OfSweepOption = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        help="Only runs of this sweep: its id or the start.",
        metavar="ID",
        rich_help_panel=STORED,
        autocompletion=completion.sweeps,
    ),
]
SortOption = Annotated[
    str,
    typer.Option(
        "--sort",
        help="Order by this column; -COLUMN: descending.",
        metavar="COLUMN",
        rich_help_panel=OUTPUT,
        autocompletion=completion.columns,
    ),
]
ReverseFlag = Annotated[bool, typer.Option("--reverse", help="The other way round.", rich_help_panel=OUTPUT)]
ColumnsOption = Annotated[
    list[str] | None,
    texts(
        "--columns",
        "Columns of the index, e.g. run_id train.steps.",
        metavar="COLUMN",
        rich_help_panel=OUTPUT,
        autocompletion=completion.columns,
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="At most this many runs.", metavar="N", min=1, rich_help_panel=OUTPUT)
]
FirstRunArgument = Annotated[
    str, typer.Argument(metavar="A", help="A run's id, or the start of it.", autocompletion=completion.runs)
]
SecondRunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="B",
        help="Another run; with --other-store it may be left out, and is A.",
        autocompletion=completion.runs,
    ),
]
OtherStoreOption = Annotated[
    Path | None,
    typer.Option(
        "--other-store", help="The store that B lies in, if not that of A.", metavar="DIR", rich_help_panel=STORED
    ),
]
ShowAllFlag = Annotated[
    bool,
    typer.Option("--all", help="Everything that the store knows of the run.", rich_help_panel=OUTPUT),
]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A name that ends in .parquet or .csv.")]
MetricsFlag = Annotated[
    bool, typer.Option("--metrics", help="Write what the runs recorded at each step instead.", rich_help_panel=OUTPUT)
]

_EXAMPLES = {
    "list": (
        ("All runs, the newest first", "dsabench runs"),
        (
            "Those that you choose, by measures and fields",
            "dsabench runs --where 'attention == \"dsa\" and length < 256'",
        ),
        (
            "The best, with columns of your choice",
            "dsabench runs --sort val_loss --columns run_id mass_recall --limit 5",
        ),
    ),
    "show": (
        ("A run by the start of its id", "dsabench runs show dsa-L64-s42"),
        ("All that the store knows of it", "dsabench runs show dsa-L64-s42 --all"),
        ("The same for a program", "dsabench runs show dsa-L64-s42 --json"),
    ),
    "diff": (
        ("Two runs of this store", "dsabench runs diff dsa-L64-s42 dense-L64-s42"),
        ("A run and the same one of somebody else", "dsabench runs diff dsa-L64-s42 --other-store theirs"),
    ),
    "rm": (
        ("Failed runs", "dsabench runs rm --where 'status == \"failed\"'"),
        ("One run, without a question", "dsabench runs rm dsa-L64-s43 --yes"),
    ),
    "export": (
        ("One row a run, for a spreadsheet", "dsabench runs export runs.csv"),
        ("What was recorded at each step", "dsabench runs export curves.parquet --metrics"),
    ),
    **runs_seals.EXAMPLES,
}


class _ListByDefault(HelpfulGroup):
    """`dsabench runs --where ...` is `dsabench runs list --where ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def add_to(app: typer.Typer) -> None:
    """Register the group of commands."""
    group = typer.Typer(
        cls=_ListByDefault,
        help="List, show, compare, verify, remove, export runs. Without a command: list, and its options.",
        epilog=epilog("store", *_EXAMPLES["list"][:2], _EXAMPLES["show"][0]),
    )
    _add(group, list_, ListCommand, None)
    _add(group, show, HelpfulCommand, "Show one run, and the command that trains it again.")
    _add(group, diff, HelpfulCommand, "How two runs differ: spec, environment, outcome.")
    _add(group, rm, HelpfulCommand, "Remove runs, after a question.")
    _add(group, runs_seals.verify, HelpfulCommand, "Compare runs with what was written, every byte.")
    _add(group, runs_seals.seal, HelpfulCommand, "Seal runs that were stored before 0.3.")
    _add(group, export, HelpfulCommand, "Write the table of runs, or their metrics, to a file.")
    app.add_typer(group, name="runs", rich_help_panel=ANSWERS)


def _add(group: typer.Typer, function: Callable[..., None], cls: type[HelpfulCommand], summary: str | None) -> None:
    name = function.__name__.rstrip("_")
    group.command(name, cls=cls, short_help=summary, epilog=epilog("store", *_EXAMPLES[name]))(function)


def list_(
    where: WhereOption = None,
    sweep: OfSweepOption = None,
    everything: AllFlag = False,
    sort: SortOption = "-order",
    reverse: ReverseFlag = False,
    columns: ColumnsOption = None,
    limit: LimitOption = None,
    store: StoreOption = Path("runs"),
    json: JsonFlag = False,
) -> None:
    """List the runs of the store, the newest first.

    All of them, whatever their sweep (--all is the default here). --columns and --sort take any column of
    runs/index.parquet: measures, and spec fields by their paths.
    """
    from dsabench.analysis.scope import choose
    from dsabench.cli.console import stdout_console
    from dsabench.cli.views import runs_table
    from dsabench.cli.views.json_document import print_json

    chosen = choose(store, sweep=sweep, everything=everything, where=where)
    for note in chosen.notes:
        _tell(f"note: {note}")
    shown = runs_table.ordered(chosen.runs, sort, reverse)
    wanted = runs_table.known_columns(chosen.runs, columns)
    shown = shown if limit is None else shown.head(limit)
    hidden = len(chosen.runs) - len(shown)
    if json:
        print_json(runs_table.documents(shown if wanted is None else shown[wanted]))
    elif shown.empty:
        print(runs_table.nothing(chosen, where))
    else:
        runs_table.print_runs(shown, wanted, stdout_console())
        runs_table.print_counts(chosen.runs, hidden, limit)
    if json and hidden:
        _tell(f"note: {count(hidden, 'more run')} {is_or_are(hidden)} not in the document (--limit {limit})")


def show(
    run: RunArgument,
    everything: ShowAllFlag = False,
    store: StoreOption = Path("runs"),
    json: JsonFlag = False,
) -> None:
    """Show one run: its results, where it was trained, and the command that trains it again.

    --all adds every field of the spec, the environment, the last records and the files; --json holds all of it, too.
    """
    from dsabench.cli.console import stdout_console
    from dsabench.cli.views import runs_show
    from dsabench.cli.views.json_document import print_json

    record = runs_show.found(store, run)
    if json:
        print_json(runs_show.document(record, store))
    else:
        runs_show.print_run(record, store, stdout_console(), everything)


def diff(
    run: FirstRunArgument,
    other: SecondRunArgument = None,
    store: StoreOption = Path("runs"),
    other_store: OtherStoreOption = None,
    json: JsonFlag = False,
) -> None:
    """Show how two runs differ: spec fields, environment, outcomes, and which data and plugins are equal by digest.

    One spec has one id on every machine: --other-store compares such runs record by record too.
    """
    from dsabench.cli.console import stdout_console
    from dsabench.cli.views import runs_diff
    from dsabench.cli.views.json_document import print_json
    from dsabench.reproduction.difference import diff_runs

    found = diff_runs(store, run, other, other_store=other_store)
    damage = runs_diff.damage_lines(found)
    for line in damage:
        _tell(f"WARNING: {line}")
    if json:
        print_json({**found.document(), "warnings": damage})
    else:
        runs_diff.print_difference(found, stdout_console())


def rm(
    runs: runs_seals.RunsArgument = None,
    where: WhereOption = None,
    sweep: OfSweepOption = None,
    yes: YesFlag = False,
    store: StoreOption = Path("runs"),
) -> None:
    """Remove runs, with their metrics and checkpoints.

    They are listed first, and nothing is removed before you say yes.
    """
    from dsabench.cli.views import runs_rm

    if bool(runs) == (where is not None or sweep is not None):
        raise typer.BadParameter("name the runs (RUN ...), or choose them by --where or --sweep")
    names = runs_rm.named(store, runs) if runs else runs_rm.chosen(store, sweep, where)
    if names:
        runs_rm.remove(store, names, yes)


def export(
    file: FileArgument,
    metrics: MetricsFlag = False,
    where: WhereOption = None,
    sweep: OfSweepOption = None,
    everything: AllFlag = False,
    store: StoreOption = Path("runs"),
) -> None:
    """Write the table of runs to a file: one row a run, a column for each measure and spec field.

    All runs, unless --sweep or --where choose (--all is the default here).
    """
    from dsabench.analysis.damaged_runs import damage_sentence, damaged_ids
    from dsabench.analysis.scope import choose
    from dsabench.cli.safe_text import printable
    from dsabench.store import check_table_path, metrics_in_parts, write_table

    check_table_path(file, store)
    chosen = choose(store, sweep=sweep, everything=everything, where=where)
    if chosen.runs.empty:
        raise ScopeError(f"nothing to export: of {count(chosen.total, 'run')} ({chosen.title}) none is chosen")
    names = [str(name) for name in chosen.runs["run_id"]]
    if metrics:
        damaged = damaged_ids(chosen.runs)
        names = [name for name in names if name not in damaged]
        if damaged:
            _tell(f"WARNING: {damage_sentence(chosen.runs)}")
    n = write_table(metrics_in_parts(store, names) if metrics else [chosen.runs], file)
    for note in chosen.notes:
        _tell(f"note: {note}")
    written = count(n, "record" if metrics else "row")
    print(printable(f"Written: {file} ({written} of {count(len(names), 'run')})"))


def _tell(message: str) -> None:
    from dsabench.cli.safe_text import printable

    print(printable(message), file=sys.stderr)
