"""`dsabench export`: runs of a store as an experiment tracker shows them, or models as `transformers` loads them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import ANSWERS, OUTPUT, STORED, HelpfulCommand, epilog
from dsabench.cli.options import AllFlag, JsonFlag, StoreOption, SweepOption, WhereOption
from dsabench.plain import count
from dsabench.trackers.names import MODELS, TRACKERS

TrackerOption = Annotated[
    str | None,
    typer.Option(
        "--to",
        help=f"Tracker: {', '.join(TRACKERS)}; or {MODELS}: the models of dense runs.",
        metavar="NAME",
        rich_help_panel=OUTPUT,
        autocompletion=completion.trackers,
    ),
]
RunsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN", help="A run's id, or the start of it; else see --sweep.", autocompletion=completion.runs
    ),
]
FollowFlag = Annotated[
    bool,
    typer.Option(
        "--follow", help="Go on until all chosen runs have ended; Ctrl-C ends it before.", rich_help_panel=STORED
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder to write to; else results/NAME.", metavar="DIR", rich_help_panel=OUTPUT),
]

_EXAMPLES = (
    ("The newest sweep, for TensorBoard", "dsabench export --to tensorboard"),
    ("A sweep that still trains, until it ends", "dsabench export --to tensorboard --follow"),
    ("Two runs alone", "dsabench export dense-L64-s42 dsa-L64-s42 --to tensorboard"),
    ("A dense model for AutoModelForCausalLM", "dsabench export dense-L64-s42 --to transformers"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "export",
        cls=HelpfulCommand,
        short_help="Write runs for a tracker, or models for transformers.",
        epilog=epilog("store", *_EXAMPLES),
        rich_help_panel=ANSWERS,
    )(export)


def export(
    to: TrackerOption = None,
    runs: RunsArgument = None,
    sweep: SweepOption = None,
    everything: AllFlag = False,
    where: WhereOption = None,
    follow: FollowFlag = False,
    store: StoreOption = Path("runs"),
    out: FolderOption = None,
    json: JsonFlag = False,
) -> None:
    """Write runs for an experiment tracker: every number by step, settings, summary and status.

    The runs of the newest sweep, unless told otherwise. Only reads the store, and uses no network: W&B runs are
    offline. Exporting again replaces what was written of a run. (`runs export` writes tables.)

    `--to transformers` writes the models of dense runs, each a folder with its tokenizer: Llama (one expert) or
    Mixtral. DSA has no class there.
    """
    if runs and (sweep is not None or where is not None or everything):
        raise typer.BadParameter("name the runs (RUN ...), or choose them by --sweep, --all or --where")

    from dsabench.cli.views.export_text import say_what_was_written, tell_of
    from dsabench.trackers.export import export as write
    from dsabench.trackers.export import known_target, open_tracker

    to = known_target(to)  # before a store is looked for
    if follow and to == MODELS:
        raise typer.BadParameter(f"--follow is for trackers; {MODELS} takes a model when it is trained")
    out = Path("results", to) if out is None else out
    names = _chosen(store, runs, sweep, everything, where, follow)
    try:
        if to == MODELS:
            from dsabench.trackers.model_folders import export_models

            outcome = export_models(store, names, out, tell_of)
        else:
            outcome = write(store, names, open_tracker(to, out, store), follow=follow, told=tell_of)
    except KeyboardInterrupt:
        print("interrupted; the same command begins anew", file=sys.stderr)
        raise typer.Exit(130) from None
    say_what_was_written(outcome, to, out, json)
    raise typer.Exit(1 if outcome.failed else 0)


def _chosen(
    store: Path, runs: Sequence[str] | None, sweep: str | None, everything: bool, where: str | None, follow: bool
) -> list[str]:
    """The ids of the runs that a user named or chose; with `follow` also those of a sweep that have not begun."""
    from dsabench.analysis.scope import look_at
    from dsabench.cli.safe_text import printable
    from dsabench.store import find_name

    if runs:
        return list(dict.fromkeys(find_name(store, run) for run in runs))
    scope = look_at(store, sweep=sweep, everything=everything, where=where)
    names = list(dict.fromkeys(map(str, scope.runs["run_id"])))
    if follow and where is None and scope.sweep is not None:
        names = list(dict.fromkeys([*names, *scope.sweep.run_ids]))
    elif scope.notes:
        for note in scope.notes:
            print(printable(f"note: {note}"), file=sys.stderr)
    print(printable(f"{scope.title}: {count(len(names), 'run')}"), file=sys.stderr)
    return names
