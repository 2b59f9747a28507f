"""`dsabench train`: one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsabench.cli.lists import ListCommand
from dsabench.cli.options import Config, Device, Json, Quiet, Set, Store, overridden


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("train", cls=ListCommand)(train)


def train(
    config: Config = "seed",
    length: Annotated[int | None, typer.Option(help="Tokens in a window.", metavar="N")] = None,
    attention: Annotated[str | None, typer.Option(help="dense, dsa, or a plugin's.", metavar="NAME")] = None,
    seed: Annotated[int | None, typer.Option(help="Training seed.", metavar="N")] = None,
    sets: Set = None,
    device: Device = None,
    store: Store = Path("runs"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train one model.

    The first run of the config unless flags choose. A done run is kept, an interrupted one resumes.
    """
    from dsabench.cli.output import describe, print_json
    from dsabench.cli.progress import Display
    from dsabench.store import check_writable

    fields = {
        "--length": ("length", length),
        "--attention": ("attention.kind", attention),
        "--seed": ("seed", seed),
        "--device": ("engine.device", device),
    }
    spec = overridden(config, sets, fields, {}).first()
    check_writable(store)
    from dsabench import runner

    name = f"{spec.attention.kind} L={spec.length} seed={spec.seed}"
    with Display(1, 0, quiet) as display:
        try:
            record = runner.train(
                spec,
                store,
                retry_failed=True,
                observe=display.start(name, spec.train.steps),
                notify=display.note_once,
            )
        except KeyboardInterrupt:
            display.note("interrupted; the same command resumes from the last checkpoint")
            raise typer.Exit(130) from None
        display.finish(name, describe(record))
    if json:
        print_json(record.model_dump(mode="json"))
    else:
        from dsabench.cli.output import print_run

        print_run(record, store)
    raise typer.Exit(0 if record.status == "done" else 1)
