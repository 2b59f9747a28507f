"""`dsabench sweep`: every combination of the axes trained, then the experiment's table, files and picture."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dsabench.cli.command_help import TRAINING, epilog
from dsabench.cli.list_options import ListCommand
from dsabench.cli.options import (
    ConfigOption,
    DeviceOption,
    JsonFlag,
    NoPluginsFlag,
    OutOption,
    QuietFlag,
    SetOption,
    StoreOption,
    check_out,
    overridden,
)
from dsabench.cli.sweep_options import (
    EXAMPLES,
    AddressOption,
    AttentionsOption,
    ConcurrencyOption,
    DevicesOption,
    DryRunFlag,
    LauncherName,
    LauncherOption,
    LengthsOption,
    MarginOption,
    OnOomOption,
    OnOutOfMemory,
    RatesOption,
    RatiosOption,
    RetryFlag,
    SeedsOption,
    SourcesOption,
)
from dsabench.errors import SpecError

if TYPE_CHECKING:
    from dsabench.cli.views.sweep_plan import SweepPlan
    from dsabench.engine.busy_cores import Others
    from dsabench.spec.run import RunSpec
    from dsabench.spec.sweep import Sweep
    from dsabench.store import RunRecord
    from dsabench.sweeps.launcher import Launcher


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("sweep", cls=ListCommand, epilog=epilog("experiment", *EXAMPLES), rich_help_panel=TRAINING)(sweep)


def sweep(
    config: ConfigOption = "seed",
    lengths: LengthsOption = None,
    attentions: AttentionsOption = None,
    seeds: SeedsOption = None,
    top_k_ratios: RatiosOption = None,
    learning_rates: RatesOption = None,
    sources: SourcesOption = None,
    margin: MarginOption = None,
    sets: SetOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = None,
    launcher: LauncherOption = None,
    address: AddressOption = None,
    concurrency: ConcurrencyOption = None,
    store: StoreOption = Path("runs"),
    out: OutOption = Path("results"),
    no_plugins: NoPluginsFlag = False,
    dry_run: DryRunFlag = False,
    retry_failed: RetryFlag = False,
    on_oom: OnOomOption = OnOutOfMemory.FAIL,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train every combination of the axes and compare them.

    Prints a table, and writes files and a picture under --out. Runs that are done are kept and interrupted ones resume,
    so the same command goes on where it was stopped.
    """
    axes = {
        "--lengths": ("length", lengths),
        "--attentions": ("attention.kind", attentions),
        "--seeds": ("seed", seeds),
        "--top-k-ratios": ("attention.top_k_ratio", top_k_ratios),
        "--learning-rates": ("train.learning_rate", learning_rates),
        "--sources": ("data.source", sources),
    }
    workers = _workers(launcher, address, device, devices)
    one = workers[0] if workers else device  # the runs are planned and audited for one device, the same for all
    experiment = overridden(config, sets, {"--device": ("engine.device", one)}, axes)
    if margin is not None:
        experiment.set_verdict({"margin": margin}, lambda path: "--margin: ")
    specs = experiment.runs()

    from dsabench.cli.views.sweep_plan import print_dry_run
    from dsabench.engine.busy_cores import Others
    from dsabench.store import check_writable

    check_writable(store)
    others = Others()  # looks at the machine while torch is loaded and the sweep is planned
    plan = _planned(experiment, specs, store, launcher, workers, concurrency)
    if dry_run:
        print_dry_run(plan, json)
        return
    check_out(out)
    if not quiet:
        _announce(plan, config, None if launcher else others)
    failed = _train(plan, store, launcher, address, retry_failed, on_oom, quiet)
    _report(plan, store, out, json)
    raise typer.Exit(1 if failed else 0)


def _report(plan: SweepPlan, store: Path, out: Path, as_json: bool) -> None:
    """Write the files and the picture of the sweep, and print its table."""
    from dsabench.cli.views import sweep_result
    from dsabench.sweeps.schedule import sweep_id

    sweep_result.report_sweep(sweep_id(plan.sweep, plan.runs), plan.runs, store, out, as_json)


def _planned(
    experiment: Sweep,
    specs: Sequence[RunSpec],
    store: Path,
    launcher: LauncherName | None,
    workers: Sequence[str],
    concurrency: int | None,
) -> SweepPlan:
    """The runs, what the store has of them, and what they will take. SpecError for a `concurrency` they cannot have."""
    from dsabench.cli.views.sweep_plan import SweepPlan
    from dsabench.engine.device import resolve
    from dsabench.sweeps import plan

    execution = resolve(specs[0].engine)
    planned = plan.plan(specs, store)
    alone = None if launcher else plan.why_alone(specs, execution)
    if alone and (concurrency or 1) > 1:
        raise SpecError(f"--concurrency {concurrency}: {alone}; leave it out or give 1")
    fits = plan.fit(planned, execution)
    n_devices = len(workers) or 1
    if concurrency is None:
        concurrency = 1 if launcher else plan.choose_concurrency(planned, execution, n_devices)
    seconds = plan.estimate_seconds(planned, execution) / n_devices
    return SweepPlan(experiment, planned, execution, fits, seconds, concurrency, workers)


def _announce(plan: SweepPlan, config: str, others: Others | None) -> None:
    """Print the plan on stderr, and a warning when training on this CPU would share it with other programs."""
    import torch

    from dsabench.cli.console import stderr_console
    from dsabench.cli.views.sweep_plan import print_plan

    console = stderr_console()
    print_plan(plan, console, config=config)
    if others and plan.execution.device.type == "cpu" and (note := others.note(torch.get_num_threads())):
        console.print(note)


def _train(
    plan: SweepPlan,
    store: Path,
    launcher: LauncherName | None,
    address: str | None,
    retry_failed: bool,
    on_oom: OnOutOfMemory,
    quiet: bool,
) -> list[RunRecord]:
    """Train what is not done, show how it goes, and return the runs that failed."""
    from dsabench.cli.progress import Display
    from dsabench.cli.views.run_outcome import describe
    from dsabench.sweeps.plan import check_data
    from dsabench.sweeps.schedule import run_sweep

    done = sum(run.status == "done" for run in plan.runs)
    records: dict[str, RunRecord] = {}
    with Display(len(plan.runs), done, quiet) as display:
        try:
            check_data(plan.runs, display.note_once)
            for record in run_sweep(
                plan.sweep,
                plan.runs,
                store,
                plan.execution,
                command=sys.argv,
                retry_failed=retry_failed,
                concurrency=plan.at_a_time,
                on_oom=on_oom.value,
                launcher=_launcher(plan, store, launcher, address, display.note_once),
                started=lambda run: display.start(run.run_id, run.spec.train.steps),
                notify=display.note_once,
            ):
                records[record.run_id] = record
                display.finish(record.run_id, describe(record))
        except KeyboardInterrupt:
            display.note(
                f"interrupted after {len(records)} of {len(plan.runs)} runs; the same command goes on from there"
            )
            raise typer.Exit(130) from None
        failed = [record for record in records.values() if record.status != "done"]
        if failed:
            display.note(f"{len(failed)} of {len(records)} runs failed; --retry-failed runs them again:")
            for record in failed:
                display.note(f"  {record.run_id}  {describe(record)}")
    return failed


def _launcher(
    plan: SweepPlan, store: Path, name: LauncherName | None, address: str | None, notify: Callable[[str], None]
) -> Launcher | None:
    """Worker processes, a Ray cluster, or None for this process."""
    if plan.devices:
        from dsabench.sweeps.workers.pool import Workers

        return Workers(store, plan.runs[0].spec.engine, plan.devices, plan.at_a_time, notify)
    if name:
        from dsabench.sweeps.ray.cluster import Cluster

        return Cluster(store, [run.spec for run in plan.runs], plan.at_a_time, notify, address)
    return None


def _workers(
    launcher: LauncherName | None, address: str | None, device: str | None, devices: list[str] | None
) -> list[str]:
    """The devices that `--devices` names, a worker process each; none without it. SpecError for flags that exclude
    each other."""
    _check_launcher(launcher, address, device, devices)
    if devices is None:
        return []
    from dsabench.sweeps.workers.pool import devices_of

    if device is not None:
        raise SpecError(f"--device {device} and --devices {' '.join(devices)}: give one of them")
    return devices_of(devices)


def _check_launcher(
    launcher: LauncherName | None, address: str | None, device: str | None, devices: list[str] | None
) -> None:
    """SpecError for flags that do not go with --launcher, or without it; and for Ray where it is not installed."""
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
