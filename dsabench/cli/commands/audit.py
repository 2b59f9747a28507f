"""`dsabench audit`: can this experiment, or this run, be believed?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsabench.cli.list_options import ListCommand
from dsabench.cli.options import Config, Device, Json, NoPlugins, Quiet, Set, Store, overridden

if TYPE_CHECKING:
    from dsabench.spec.run import RunSpec
    from dsabench.spec.sweep import Sweep


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("audit", cls=ListCommand)(audit)


def audit(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A stored run by its id or the start of it, instead of a config.", metavar="[RUN]", show_default=False
        ),
    ] = None,
    config: Config = "seed",
    length: Annotated[int | None, typer.Option(help="Tokens in a window.", metavar="N")] = None,
    attention: Annotated[
        str | None, typer.Option(help="dense, dsa, random, ..., or a plugin's; else all of the config.", metavar="NAME")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Training seed.", metavar="N")] = None,
    sets: Set = None,
    device: Device = None,
    store: Store = Path("runs"),
    no_plugins: NoPlugins = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check an attention for look-ahead and other mistakes.

    Looks at each attention of the config (of a ladder: of its first rung) as it would be trained, or at a stored run
    with its trained weights. Exit 1 when a check fails. Training runs the first four checks by itself and refuses a
    leak, unless allow_leak = true. They cannot see a leak that only training opens (audit the RUN afterwards); one that
    needs tokens, steps or chances, or in a long window positions, that were not tried; one below 1e-4 of an output, or
    into gradients alone; or one that bf16 or a CUDA graph brings in: an audit computes in fp32, step by step.
    """
    from dsabench.cli.progress import stderr_console
    from dsabench.cli.views.outcome import print_json, stdout_console

    fields = {
        "--length": ("length", length),
        "--attention": ("attention.kind", attention),
        "--seed": ("seed", seed),
        "--device": ("engine.device", device),
    }
    own_fields = sets or config != "seed" or any(value is not None for value in (length, attention, seed))
    if run is not None and own_fields:
        raise typer.BadParameter("a stored RUN has its own settings: leave --config, --set and field options out")
    specs = [] if run is not None else _specs(overridden(config, sets, fields, {}))

    from dsabench.audit.experiment_checks import examine, examine_run
    from dsabench.cli.views.audit_tables import audit_document, audit_lines
    from dsabench.engine.device import resolve

    log = stderr_console()

    def notify(message: str) -> None:
        if not quiet:
            log.print(message)

    try:
        found = []
        if run is not None:
            notify(f"auditing run {run}")
            found.append(examine_run(store, run, device, notify))
        else:
            execution = resolve(specs[0].engine)
            for i, spec in enumerate(specs, 1):
                notify(f"[{i}/{len(specs)}] auditing {spec.attention.kind} L={spec.length}")
                found.append(examine(spec, execution, notify))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if json:
        print_json(audit_document(found))
    else:
        audit_lines(found, stdout_console())
    raise typer.Exit(1 if any(one.failed for one in found) else 0)


def _specs(sweep: Sweep) -> list[RunSpec]:
    """The first value of every axis but the attention's kind, on the first rung of a ladder."""
    sweep = sweep.lowest()
    for path in sweep.axes:
        if path != "attention.kind":
            sweep.axes[path] = sweep.axes[path][:1]
    if "attention.kind" not in sweep.axes:
        sweep.first()  # refuses fields that were asked for and that this attention has not
    return sweep.runs()
