"""`dsabench sweep`: every combination of the axes, then the experiment's table, files and picture."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsabench.cli.list_options import ListCommand, integers, numbers, texts
from dsabench.cli.options import Config, Device, Json, NoPlugins, Out, Quiet, Set, Store, overridden

if TYPE_CHECKING:
    from dsabench.store import RunRecord


class OnOutOfMemory(StrEnum):
    """What becomes of a run that finds too little memory."""

    FAIL = "fail"
    ACCUMULATE = "accumulate"


class Launcher(StrEnum):
    """Where runs are trained, if not in this process."""

    RAY = "ray"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("sweep", cls=ListCommand)(sweep)


def sweep(
    config: Config = "seed",
    lengths: Annotated[list[int] | None, integers("--lengths", "Window lengths.")] = None,
    attentions: Annotated[list[str] | None, texts("--attentions", "dense, dsa, random, ..., or a plugin's.")] = None,
    seeds: Annotated[list[int] | None, integers("--seeds", "Training seeds.")] = None,
    top_k_ratios: Annotated[list[float] | None, numbers("--top-k-ratios", "Shares of the window kept.")] = None,
    learning_rates: Annotated[list[float] | None, numbers("--learning-rates", "Peak learning rates.")] = None,
    sources: Annotated[list[str] | None, texts("--sources", "Data sources.", metavar="SOURCE")] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Loss in nats that still counts as not worse; kept with the sweep.", metavar="X"),
    ] = None,
    sets: Set = None,
    device: Device = None,
    devices: Annotated[
        list[str] | None,
        texts("--devices", "all, GPUs by number (0 1), or cpu: a worker process each.", metavar="DEVICE"),
    ] = None,
    launcher: Annotated[
        Launcher | None, typer.Option("--launcher", help="ray: runs are trained by the nodes of a Ray cluster.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Of the Ray cluster; else one of this machine.", metavar="auto|HOST:PORT"),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Runs that share a GPU; default: 5 when steps are small, else 1.", metavar="N"),
    ] = None,
    store: Store = Path("runs"),
    out: Out = Path("results"),
    no_plugins: NoPlugins = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run stored failures again.")] = False,
    on_oom: Annotated[
        OnOutOfMemory,
        typer.Option(
            "--on-oom",
            help="When memory runs out: fail, or accumulate: halve the windows at a time, of the same batch, for that "
            "run and all it is compared with.",
        ),
    ] = OnOutOfMemory.FAIL,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train every combination of the axes and compare them.

    Prints a table, and writes files and a picture under --out.

    Runs that are done are kept and interrupted ones resume, so the same command goes on where it was stopped.
    """
    axes = {
        "--lengths": ("length", lengths),
        "--attentions": ("attention.kind", attentions),
        "--seeds": ("seed", seeds),
        "--top-k-ratios": ("attention.top_k_ratio", top_k_ratios),
        "--learning-rates": ("train.learning_rate", learning_rates),
        "--sources": ("data.source", sources),
    }
    _check_launcher(launcher, address, device, devices)
    names: list[str] = []
    if devices is not None:
        from dsabench.errors import SpecError
        from dsabench.sweeps.workers.pool import devices_of

        if device is not None:
            raise SpecError(f"--device {device} and --devices {' '.join(devices)}: give one of them")
        names = devices_of(devices)
        device = names[0]  # what is planned and audited is the same for all
    experiment = overridden(config, sets, {"--device": ("engine.device", device)}, axes)
    if margin is not None:
        experiment.set_verdict({"margin": margin}, lambda path: "--margin: ")
    specs = experiment.runs()

    from dsabench.cli.busy import Others
    from dsabench.cli.progress import Display, stderr_console
    from dsabench.cli.views import outcome
    from dsabench.store import check_writable

    check_writable(store)
    others = Others()
    import torch

    from dsabench.engine.device import resolve
    from dsabench.errors import SpecError
    from dsabench.sweeps import launcher as places
    from dsabench.sweeps import plan
    from dsabench.sweeps.schedule import run_sweep, sweep_id
    from dsabench.sweeps.workers.pool import Workers

    execution = resolve(specs[0].engine)
    planned = plan.plan(specs, store)
    alone = None if launcher else plan.why_alone(specs, execution)
    if alone and (concurrency or 1) > 1:
        raise SpecError(f"--concurrency {concurrency}: {alone}; leave it out or give 1")
    fits = plan.fit(planned, execution)
    n_devices = len(names) or 1
    if concurrency is None:
        concurrency = 1 if launcher else plan.choose_concurrency(planned, execution, n_devices)
    seconds = plan.estimate_seconds(planned, execution) / n_devices
    if dry_run:
        if json:
            outcome.print_json(outcome.plan_document(planned, experiment, seconds, fits, concurrency, names))
        else:
            console = outcome.stdout_console()
            outcome.print_plan(
                planned, experiment, execution, seconds, fits, concurrency, console, devices=names, full=True
            )
        return
    outcome.check_out(out)
    if not quiet:
        console = stderr_console()
        outcome.print_plan(
            planned, experiment, execution, seconds, fits, concurrency, console, devices=names, config=config
        )
        if execution.device.type == "cpu" and not launcher and (note := others.note(torch.get_num_threads())):
            console.print(note)
    done = sum(run.status == "done" for run in planned)
    records: dict[str, RunRecord] = {}
    with Display(len(planned), done, quiet) as display:
        try:
            plan.check_data(planned, display.note_once)
            place: places.Launcher | None = None
            if names:
                place = Workers(store, specs[0].engine, names, concurrency, display.note_once)
            elif launcher:
                from dsabench.sweeps.ray.cluster import Cluster

                place = Cluster(store, specs, concurrency, display.note_once, address)
            for record in run_sweep(
                experiment,
                planned,
                store,
                execution,
                command=sys.argv,
                retry_failed=retry_failed,
                concurrency=concurrency,
                on_oom=on_oom.value,
                launcher=place,
                started=lambda run: display.start(run.run_id, run.spec.train.steps),
                notify=display.note_once,
            ):
                records[record.run_id] = record
                display.finish(record.run_id, outcome.describe(record))
        except KeyboardInterrupt:
            display.note(
                f"interrupted after {len(records)} of {len(planned)} runs; the same command goes on from there"
            )
            raise typer.Exit(130) from None
        failed = [record for record in records.values() if record.status != "done"]
        if failed:
            display.note(f"{len(failed)} of {len(records)} runs failed; --retry-failed runs them again:")
            for record in failed:
                display.note(f"  {record.run_id}  {outcome.describe(record)}")
    outcome.report_sweep(sweep_id(experiment, planned), planned, store, out, json)
    raise typer.Exit(1 if failed else 0)


def _check_launcher(
    launcher: Launcher | None, address: str | None, device: str | None, devices: list[str] | None
) -> None:
    from dsabench.errors import SpecError

    if launcher is None:
        if address is not None:
            raise SpecError(f"--address {address} is that of a Ray cluster: give --launcher ray too")
        return
    for flag, value in (("--device", device), ("--devices", devices and " ".join(devices))):
        if value is not None:
            raise SpecError(
                f"{flag} {value} and --launcher ray: Ray gives each run a GPU of its cluster, or a CPU where there is "
                "none or engine.device is cpu (--set engine.device=cpu); leave one of them out"
            )
    from dsabench.sweeps.ray import ray_session

    ray_session.library()
