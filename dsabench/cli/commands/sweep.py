"""`dsabench sweep`: every combination of the axes trained, then the experiment's table, files and picture."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dsabench.cli import long_training
from dsabench.cli.command_help import TRAINING, epilog
from dsabench.cli.list_options import ListCommand
from dsabench.cli.options import (
    ConfigOption,
    DeviceOption,
    FromOption,
    JsonFlag,
    NoPluginsFlag,
    OutOption,
    QuietFlag,
    SetOption,
    StoreOption,
    check_out,
    overridden,
    start_at,
)
from dsabench.cli.places import LauncherName, workers_of
from dsabench.cli.sweep_options import (
    EXAMPLES,
    AddressOption,
    AttentionsOption,
    ConcurrencyOption,
    DevicesOption,
    DryRunFlag,
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
    TuneOption,
    TuneOverOption,
    YesFlag,
    tuned,
)
from dsabench.cli.views import next_steps
from dsabench.errors import SpecError
from dsabench.plain import count
from dsabench.shutdown import INTERRUPTED

if TYPE_CHECKING:
    from dsabench.cli.views.sweep_plan import SweepPlan
    from dsabench.engine.busy_cores import Others
    from dsabench.store import RunRecord


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
    tune: TuneOption = None,
    tune_over: TuneOverOption = None,
    start: FromOption = None,
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
    yes: YesFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train every combination of the axes and compare them. Prints a table, and writes files and a picture under --out.

    Runs that are done are kept and interrupted ones resume: the same command goes on where it was stopped.
    """
    axes = {
        "--lengths": ("length", lengths),
        "--attentions": ("attention.kind", attentions),
        "--seeds": ("seed", seeds),
        "--top-k-ratios": ("attention.top_k_ratio", top_k_ratios),
        "--learning-rates": ("train.learning_rate", learning_rates),
        "--sources": ("data.source", sources),
    }
    workers = workers_of(launcher, address, device, devices)
    from dsabench.cli.views.sweep_plan import print_dry_run
    from dsabench.engine.busy_cores import Others

    where = (store, launcher, workers, concurrency, retry_failed, on_oom)
    fields = {"--device": ("engine.device", workers[0] if workers else device), **start_at(start, store)}
    planned = partial(_planned, given=(axes, sets, fields), judged=(margin, tune, tune_over), where=where)
    others = Others()  # looks at the machine while torch is loaded and the sweep is planned
    plan = planned(config, check=dry_run)
    if dry_run:
        print_dry_run(plan, json)
        return
    check_out(out)
    agreed = _agreed(plan, planned, config, None if quiet else others, yes or launcher is not None)
    command = sys.argv if agreed.sweep.name == plan.sweep.name else long_training.with_quick(sys.argv)
    failed, took = _train(agreed, store, launcher, address, retry_failed, on_oom, quiet, command)
    _report(agreed, store, out, json)
    if not quiet:
        next_steps.after_sweep(agreed, store, out, took)
    raise typer.Exit(1 if failed or any(run.problem for run in agreed.runs) else 0)


def _report(plan: SweepPlan, store: Path, out: Path, as_json: bool) -> None:
    """Write the files and the picture of the sweep, and print its table."""
    from dsabench.cli.views import sweep_result
    from dsabench.sweeps.sweep_identity import sweep_id

    identity = sweep_id(plan.sweep, plan.runs) if plan.search is None else plan.search.identity
    sweep_result.report_sweep(identity, plan.first, store, out, as_json)


def _planned(
    config: str,
    *,
    given: tuple[dict[str, tuple[str, Any]], list[str] | None, dict[str, tuple[str, Any]]],
    judged: tuple[float | None, int | None, list[str] | None],
    where: tuple[Path, LauncherName | None, Sequence[str], int | None, bool, OnOutOfMemory],
    check: bool = False,
) -> SweepPlan:
    """The runs, what the store has of them, and what they will take. SpecError for a concurrency they cannot have.

    given: axes, --set, and flags for fields. judged: margin, and trials and fields of the search. where: store,
    launcher, devices with a worker each, concurrency, whether failures are trained again, and what is done about too
    little memory. check: whether small texts are refused now if they are too small to train on, which is done before
    training otherwise.
    """
    (axes, sets, fields), (margin, trials, over) = given, judged
    store, launcher, workers, concurrency, retry_failed, on_oom = where
    experiment = tuned(overridden(config, sets, fields, axes), trials, over)
    if margin is not None:
        experiment.set_verdict({"margin": margin}, lambda path: "--margin: ")
    specs = experiment.runs()

    from dsabench.compilation import standby

    if not check:
        standby.begin(specs[0].engine)  # before this process loads PyTorch, so that both do at once

    from dsabench.cli.views.sweep_plan import SweepPlan
    from dsabench.engine.device import resolve
    from dsabench.store import check_writable
    from dsabench.sweeps import plan
    from dsabench.sweeps.search import search_of

    check_writable(store)
    execution = resolve(specs[0].engine)
    searching = search_of(experiment, store, retry_failed, on_oom.value)
    planned = plan.plan(specs, store) if searching is None else searching.outlook()
    if check:
        plan.check_small_data(planned)
    alone = None if launcher else plan.why_alone(specs, execution)
    if alone and (concurrency or 1) > 1:
        raise SpecError(f"--concurrency {concurrency}: {alone}; leave it out or give 1")
    fits = plan.fit(planned, execution)
    n_devices = len(workers) or 1
    if concurrency is None:
        concurrency = 1 if launcher else plan.choose_concurrency(planned, execution, n_devices)
    times = plan.timetable(planned, execution, at_a_time=concurrency, n_devices=n_devices)
    return SweepPlan(experiment, planned, execution, fits, times, concurrency, workers, searching)


def _agreed(
    plan: SweepPlan,
    planned: Callable[[str], SweepPlan],
    config: str,
    others: Others | None,
    is_agreed: bool,
) -> SweepPlan:
    """The plan to train: announced, and where it is long for a CPU, agreed to by whoever is at the terminal.

    others: watched since the command began; None to announce nothing.
    """
    from dsabench.cli.console import stderr_console
    from dsabench.cli.views.sweep_plan import print_plan

    console = stderr_console()
    if others is not None:
        print_plan(plan, console, config=config)
        if note := _busy_note(plan, others):
            console.print(note)
    if is_agreed or not long_training.is_to_be_asked(plan.execution.device.type, plan.seconds):
        return plan
    match long_training.ask(plan.seconds, offers_quick=config != "quick"):
        case "quick":
            return _agreed(planned("quick"), planned, "quick", others, is_agreed)
        case "no":
            console.print("Nothing was trained.")
            raise typer.Exit(INTERRUPTED)
    return plan


def _busy_note(plan: SweepPlan, others: Others) -> str | None:
    """A warning when training on this machine's CPU would share it with other programs."""
    import torch

    if plan.execution.device.type != "cpu" or not plan.seconds:
        return None
    threads = torch.get_num_threads()
    if len(plan.devices) > 1 and threads < 2 * len(plan.devices):
        return None  # each worker has one thread, which waits for no other
    return others.note(threads)


def _train(
    plan: SweepPlan,
    store: Path,
    launcher: LauncherName | None,
    address: str | None,
    retry_failed: bool,
    on_oom: OnOutOfMemory,
    quiet: bool,
    command: list[str],
) -> tuple[list[RunRecord], float]:
    """Train what is not done and show how it goes. Returns the runs that failed, and the seconds that it took.

    command: the one that was typed, with the config that was chosen.
    """
    from dsabench.cli.console import stderr_console
    from dsabench.cli.places import launcher_of
    from dsabench.cli.views.run_outcome import describe
    from dsabench.compilation.ahead import compiling, shapes_of
    from dsabench.progress.display import Display
    from dsabench.sweeps.plan import check_data
    from dsabench.sweeps.schedule import run_sweep

    done = sum(run.status == "done" for run in plan.runs)
    records: dict[str, RunRecord] = {}
    left = [run.spec for run in plan.runs if run.is_left]
    shown = Display(plan.times, console=stderr_console(), done=done, quiet=quiet)
    with compiling(shapes_of(left, plan.execution), plan.execution) as kernels, shown as display:
        try:
            check_data(plan.runs, display.note_once, display.counted)
            for record in run_sweep(
                plan.sweep,
                plan.first,
                store,
                plan.execution,
                command=command,
                retry_failed=retry_failed,
                concurrency=plan.at_a_time,
                on_oom=on_oom.value,
                launcher=launcher_of(plan, store, launcher, address, display.note_once),
                search=plan.search,
                started=lambda run: display.start(plan.shown(run.run_id), run.run_id),
                notify=display.note_once,
                counted=display.counted,
                kernels=kernels,
            ):
                records[record.run_id] = record
                display.finish(plan.shown(record.run_id), describe(record))
        except KeyboardInterrupt:
            again = "the same command" if command == sys.argv else shlex.join(["dsabench", *command[1:]])
            display.note(
                f"interrupted after {len(records)} of {count(len(plan.runs), 'run')}; {again} goes on from there"
            )
            raise typer.Exit(130) from None
        failed = [one for one in records.values() if one.status != "done" and plan.is_judged(one.run_id)]
        if failed:
            display.note(f"{len(failed)} of {count(len(records), 'run')} failed; --retry-failed runs them again:")
            for record in failed:
                display.note(f"  {record.run_id}  {describe(record)}")
    return failed, display.seconds
