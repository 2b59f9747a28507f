"""`dsabench reproduce`: a stored run trained again, and compared with what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsabench.cli.command_help import COMPARISON, EXPERIMENT, STORED, TRAINING, HelpfulCommand, epilog
from dsabench.cli.options import DeviceOption, JsonFlag, NoPluginsFlag, QuietFlag, RunArgument, StoreOption

if TYPE_CHECKING:
    from dsabench.engine.sink import Update
    from dsabench.progress.display import Display
    from dsabench.spec.run import RunSpec

IntoOption = Annotated[
    Path | None,
    typer.Option(
        "--into",
        help="A store to keep the second run in; else it is thrown away.",
        metavar="DIR",
        rich_help_panel=STORED,
    ),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        help="Nats by which losses may differ; else every bit counts.",
        metavar="X",
        min=0,
        rich_help_panel=COMPARISON,
    ),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        help="Where a plugin file of the run lies now; repeatable.",
        metavar="FILE",
        rich_help_panel=EXPERIMENT,
    ),
]

_EXAMPLES = (
    ("Every bit must be the same", "dsabench reproduce dsa-L64-s42"),
    ("On another machine: losses within a thousandth of a nat", "dsabench reproduce dsa-L64-s42 --tolerance 1e-3"),
    ("Keep the second run, to look at it", "dsabench reproduce dsa-L64-s42 --into again"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "reproduce",
        cls=HelpfulCommand,
        short_help="Train a stored run again and compare, bit for bit.",
        epilog=epilog("reliability", *_EXAMPLES),
        rich_help_panel=TRAINING,
    )(reproduce)


def reproduce(
    run: RunArgument,
    tolerance: ToleranceOption = None,
    device: DeviceOption = None,
    into: IntoOption = None,
    plugin: PluginOption = None,
    store: StoreOption = Path("runs"),
    no_plugins: NoPluginsFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train a stored run again and compare, step by step: losses, all that was recorded, and the final weights.

    The run itself is only read. On the same kind of device unless --device says another. Ends with 0 when it is the
    same (or within --tolerance), with 1 when it differs.
    """
    from dsabench.cli.console import stderr_console
    from dsabench.cli.views.json_document import print_json
    from dsabench.progress.display import Display
    from dsabench.store import check_writable, find_run

    original = find_run(store, run)
    if into is not None:
        check_writable(into, "--into")
    from dsabench.cli.console import stdout_console
    from dsabench.cli.views import reproduction_text
    from dsabench.reproduction import train_again as reproducing

    with Display(console=stderr_console(), quiet=quiet) as display:
        try:
            found = reproducing.reproduce(
                store,
                original.run_id,
                into=into,
                device=device,
                tolerance=tolerance,
                plugins=plugin or [],
                observe=_observer(display, original.run_id),
                notify=display.note_once,
            )
        except KeyboardInterrupt:
            kept = "the same command goes on from there" if into else "nothing was kept (--into DIR keeps it)"
            display.note(f"interrupted; {kept}")
            raise typer.Exit(130) from None
    if json:
        print_json(reproduction_text.document(found))
    else:
        reproduction_text.print_reproduction(found, store, stdout_console())
    raise typer.Exit(1 if found.verdict == "differs" else 0)


def _observer(display: Display, run_id: str) -> Callable[[RunSpec], Callable[[Update], None]]:
    """The observer of the second run, whose plan is made when its spec is known."""
    from dsabench.engine.device import resolve
    from dsabench.sweeps.plan import PlannedRun, timetable

    def observe(spec: RunSpec) -> Callable[[Update], None]:
        display.expect(timetable([PlannedRun(spec, run_id, "new")], resolve(spec.engine)))
        return display.start(run_id)

    return observe
