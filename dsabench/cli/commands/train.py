"""`dsabench train`: one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsabench.cli.command_help import MACHINE, OUTPUT, TRAINING, epilog
from dsabench.cli.list_options import ListCommand
from dsabench.cli.options import (
    AttentionOption,
    ConfigOption,
    DeviceOption,
    FromOption,
    JsonFlag,
    LengthOption,
    NoPluginsFlag,
    QuietFlag,
    SeedOption,
    SetOption,
    StoreOption,
    overridden,
    run_fields,
    start_at,
)
from dsabench.errors import StoreError

if TYPE_CHECKING:
    from dsabench.spec.run import RunSpec
    from dsabench.spec.sweep import Sweep
    from dsabench.store import RunRecord

DataParallelOption = Annotated[
    int,
    typer.Option(
        "--data-parallel",
        help="Processes that train the run together, a GPU each.",
        metavar="N",
        min=1,
        rich_help_panel=MACHINE,
    ),
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run needs and train nothing.", rich_help_panel=OUTPUT)
]

_EXAMPLES = (
    ("DSA at 64 tokens, in a minute on a CPU", "dsabench train --config quick --attention dsa --length 64"),
    ("Another setting; any field of `dsabench fields`", "dsabench train --config quick --set train.steps=500"),
    ("Memory, time and FLOPs of a larger model, without training", "dsabench train --set model.d_model=2048 --dry-run"),
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("train", cls=ListCommand, epilog=epilog("experiment", *_EXAMPLES), rich_help_panel=TRAINING)(train)


def train(
    config: ConfigOption = "seed",
    length: LengthOption = None,
    attention: AttentionOption = None,
    seed: SeedOption = None,
    start: FromOption = None,
    sets: SetOption = None,
    device: DeviceOption = None,
    store: StoreOption = Path("runs"),
    data_parallel: DataParallelOption = 1,
    no_plugins: NoPluginsFlag = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train one model.

    The first run of the config unless flags choose. A done run is kept, an interrupted one resumes.
    """
    from dsabench.cli.views.json_document import print_json
    from dsabench.cli.views.next_steps import after_run
    from dsabench.cli.views.run_outcome import print_run
    from dsabench.store import check_writable

    fields = {**run_fields(length, attention, seed, device), **start_at(start, store)}
    experiment = overridden(config, sets, fields, {})
    spec = experiment.first()
    check_writable(store)
    if dry_run:
        experiment.axes.clear()
        experiment.ladder.clear()
        _plan(spec, experiment, store, data_parallel, json)
        return
    record, took = _trained(spec, store, data_parallel, quiet)
    if json:
        print_json(record.model_dump(mode="json"))
    else:
        print_run(record, store)
    if not quiet:
        after_run(record, spec, store, took)
    raise typer.Exit(0 if record.status == "done" else 1)


def _trained(spec: RunSpec, store: Path, data_parallel: int, quiet: bool) -> tuple[RunRecord, float]:
    """Train the run and show how it goes. Returns its record and the seconds that it took, 0 where it was done."""
    from dsabench.compilation import standby

    standby.begin(spec.engine)  # before this process loads PyTorch, so that both do at once

    from dsabench.cli.console import stderr_console
    from dsabench.cli.views.run_outcome import describe
    from dsabench.cli.views.sweep_plan import warmup_note
    from dsabench.engine.data_parallel.leader import spread
    from dsabench.engine.device import resolve
    from dsabench.progress.display import Display
    from dsabench.sweeps import single_run
    from dsabench.sweeps.plan import plan, timetable

    planned = plan([spec], store)
    times = timetable(planned, spread(spec, resolve(spec.engine), data_parallel))
    with Display(times, console=stderr_console(), quiet=quiet) as display:
        if times.runs and (note := warmup_note(spec)):
            display.note(note)
        try:
            for run in planned:  # a parent first, where the run starts from one
                record = single_run.train(
                    run.spec,
                    store,
                    retry_failed=True,
                    data_parallel=data_parallel,
                    progress=False,
                    observe=display.start(run.run_id, single_run.label_of(run.spec)),
                    notify=display.note_once,
                    counted=display.counted,
                )
                display.finish(record.run_id, describe(record))
                if record.status != "done" and run.for_children:
                    raise StoreError(single_run.without_parent(record, 1))
        except KeyboardInterrupt:
            display.note("interrupted; the same command resumes from the last checkpoint")
            raise typer.Exit(130) from None
    return record, display.seconds if times.runs else 0.0


def _plan(spec: RunSpec, experiment: Sweep, store: Path, data_parallel: int, json: bool) -> None:
    """Print what the run will do, its memory and its model FLOPs."""
    from dsabench.cli.console import stdout_console
    from dsabench.cli.views.json_document import print_json
    from dsabench.cli.views.sweep_plan import SweepPlan, plan_document, print_plan
    from dsabench.engine.data_parallel.leader import spread
    from dsabench.engine.device import resolve
    from dsabench.sweeps import plan

    execution = spread(spec, resolve(spec.engine), data_parallel)
    planned = plan.plan([spec], store)
    plan.check_small_data(planned)
    fits = plan.fit(planned, execution)
    times = plan.timetable(planned, execution)
    flops = plan.flops_per_step(spec)
    shown = SweepPlan(experiment, planned, execution, fits, times, at_a_time=1)
    if json:
        print_json({**plan_document(shown), "flops_per_step": flops, "data_parallel": data_parallel})
        return
    console = stdout_console()
    print_plan(shown, console, full=True)
    if data_parallel > 1:
        share = execution.ranks.windows(spec.batch_size)
        console.print(f"{data_parallel} processes, of {share} windows a step each; the memory is each one's")
    total = sum(flops.values())
    parts = ", ".join(f"{item} {value / total:.0%}" for item, value in flops.items() if value >= 0.005 * total)
    console.print(f"model FLOPs a step: {total:.3g} ({parts})")
