"""`dsabench audit`: an experiment, or a stored run, checked for look-ahead and other mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import CHECKS, epilog
from dsabench.cli.list_options import ListCommand
from dsabench.cli.options import (
    AttentionOption,
    ConfigOption,
    DeviceOption,
    JsonFlag,
    LengthOption,
    NoPluginsFlag,
    QuietFlag,
    SeedOption,
    SetOption,
    StoreOption,
    one_run_each,
    overridden,
    run_fields,
)

AuditedRunArgument = Annotated[
    str | None,
    typer.Argument(
        help="A stored run by its id or the start of it, instead of a config.",
        metavar="RUN",
        show_default=False,
        autocompletion=completion.runs,
    ),
]

_EXAMPLES = (
    ("Every attention of an experiment, as it would be trained", "dsabench audit --config quick"),
    ("One attention at a length of its own", "dsabench audit --config quick --attention dsa --length 64"),
    ("A stored run, with its trained weights", "dsabench audit dsa-L64-s42"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("audit", cls=ListCommand, epilog=epilog("verdicts", *_EXAMPLES), rich_help_panel=CHECKS)(audit)


def audit(
    run: AuditedRunArgument = None,
    config: ConfigOption = "seed",
    length: LengthOption = None,
    attention: AttentionOption = None,
    seed: SeedOption = None,
    sets: SetOption = None,
    device: DeviceOption = None,
    store: StoreOption = Path("runs"),
    no_plugins: NoPluginsFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Check an attention for look-ahead and other mistakes.

    Looks at each attention of the config, or at --attention, as it would be trained (of a ladder: on its first rung);
    or at a stored run with its trained weights. Exit 1 when a check fails. Training runs the first four checks by
    itself and refuses a leak, unless allow_leak = true.

    An audit cannot see a leak that only training opens (audit the RUN afterwards); one that needs tokens, steps or
    chances, or in a long window positions, that were not tried; one below 1e-4 of an output, or into gradients alone;
    or one that bf16 or a CUDA graph brings in: an audit computes in fp32, step by step.
    """
    own_fields = sets or config != "seed" or any(value is not None for value in (length, attention, seed))
    if run is not None and own_fields:
        raise typer.BadParameter("a stored RUN has its own settings: leave --config, --set and field options out")
    fields = run_fields(length, attention, seed, device)
    specs = [] if run is not None else one_run_each(overridden(config, sets, fields, {}), "attention.kind")

    from dsabench.audit.experiment_checks import examine, examine_run
    from dsabench.cli.console import notifier, stdout_console
    from dsabench.cli.views.audit_tables import audit_document, audit_lines
    from dsabench.cli.views.json_document import print_json
    from dsabench.engine.device import resolve

    notify = notifier(quiet)
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
