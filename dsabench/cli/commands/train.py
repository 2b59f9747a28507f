"""`dsabench train`: one run."""

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
    app.command("train", cls=ListCommand)(train)


def train(
    config: Config = "seed",
    length: Annotated[int | None, typer.Option(help="Tokens in a window.", metavar="N")] = None,
    attention: Annotated[
        str | None, typer.Option(help="dense, dsa, random, ..., or a plugin's.", metavar="NAME")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Training seed.", metavar="N")] = None,
    sets: Set = None,
    device: Device = None,
    store: Store = Path("runs"),
    data_parallel: Annotated[
        int, typer.Option(min=1, help="Processes that train it together, a GPU each.", metavar="N")
    ] = 1,
    no_plugins: NoPlugins = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the run needs and train nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train one model.

    The first run of the config unless flags choose. A done run is kept, an interrupted one resumes.
    """
    from dsabench.cli.progress import Display
    from dsabench.cli.views.outcome import describe, print_json
    from dsabench.store import check_writable

    fields = {
        "--length": ("length", length),
        "--attention": ("attention.kind", attention),
        "--seed": ("seed", seed),
        "--device": ("engine.device", device),
    }
    experiment = overridden(config, sets, fields, {})
    spec = experiment.first()
    check_writable(store)
    from dsabench.sweeps import single_run

    if dry_run:
        experiment.axes.clear()
        experiment.ladder.clear()
        _plan(spec, experiment, store, data_parallel, json)
        return
    name = f"{spec.attention.kind} L={spec.length} seed={spec.seed}"
    with Display(1, 0, quiet) as display:
        try:
            record = single_run.train(
                spec,
                store,
                retry_failed=True,
                data_parallel=data_parallel,
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
        from dsabench.cli.views.outcome import print_run

        print_run(record, store)
    raise typer.Exit(0 if record.status == "done" else 1)


def _plan(spec: RunSpec, experiment: Sweep, store: Path, data_parallel: int, json: bool) -> None:
    """What the run will do, its memory and its model FLOPs."""
    from dsabench.cli.views import outcome
    from dsabench.engine.data_parallel.leader import spread
    from dsabench.engine.device import resolve
    from dsabench.sweeps import plan

    execution = spread(spec, resolve(spec.engine), data_parallel)
    planned = plan.plan([spec], store)
    fits = plan.fit(planned, execution)
    seconds = plan.estimate_seconds(planned, execution)
    flops = plan.flops_per_step(spec)
    if json:
        document = outcome.plan_document(planned, experiment, seconds, fits, 1)
        outcome.print_json({**document, "flops_per_step": flops, "data_parallel": data_parallel})
        return
    console = outcome.stdout_console()
    outcome.print_plan(planned, experiment, execution, seconds, fits, 1, console, full=True)
    if data_parallel > 1:
        share = execution.ranks.windows(spec.batch_size)
        console.print(f"{data_parallel} processes, of {share} windows a step each; the memory is each one's")
    total = sum(flops.values())
    parts = ", ".join(f"{item} {value / total:.0%}" for item, value in flops.items() if value >= 0.005 * total)
    console.print(f"model FLOPs a step: {total:.3g} ({parts})")
