"""The course of a sweep, from its plan to its last record: the order of its runs, wherever they are trained."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from dsabench import data as data_package
from dsabench.audit import gate
from dsabench.compilation.ahead import NOTHING, Kernels
from dsabench.engine import failures
from dsabench.engine.device import Execution, environment
from dsabench.engine.sink import Update
from dsabench.errors import DeviceError, StoreError
from dsabench.plain import count, is_or_are
from dsabench.progress.time_left import AUDIT
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.run import RunSpec
from dsabench.spec.sweep import Sweep
from dsabench.store import RunBusyError, RunRecord, SweepRecord, index, read_sweep, write_sweep
from dsabench.store.remedies import OF_A_SWEEP
from dsabench.sweeps.dead_run import record_death
from dsabench.sweeps.in_process import Here
from dsabench.sweeps.launcher import Busy, Crowded, Died, Ended, Job, Launcher, Refused, TooManyWindows
from dsabench.sweeps.micro_batch import MicroBatches
from dsabench.sweeps.origin import check_origins
from dsabench.sweeps.plan import PlannedRun, choose_concurrency, of_sweep, rungs, status
from dsabench.sweeps.search import Search
from dsabench.sweeps.single_run import without_parent
from dsabench.sweeps.sweep_identity import sweep_id
from dsabench.user_folders import remove_abandoned

BUSY_SECONDS = 0.5
"""Time between looks at a run that another process trains."""


def run_sweep(
    sweep: Sweep,
    planned: Sequence[PlannedRun],
    store: str | Path,
    execution: Execution,
    *,
    command: list[str] | None = None,
    retry_failed: bool = False,
    concurrency: int | None = None,
    on_oom: Literal["fail", "accumulate"] = "fail",
    launcher: Launcher | None = None,
    search: Search | None = None,
    started: Callable[[PlannedRun], Callable[[Update], None]] = lambda run: lambda update: None,
    notify: Callable[[str], None] = lambda message: None,
    counted: Callable[[str, float], None] = lambda part, share: None,
    kernels: Kernels = NOTHING,
) -> Iterator[RunRecord]:
    """Train the planned runs in order, yielding each one's record when it ends; a run that fails does not stop the
    others, one that another process trains is waited for, and a damaged one is left as it is.

    execution: of the sweep's `engine`, in this process, which audits the models. launcher: where runs are trained; None
    is in this process, `concurrency` runs at a time (None chooses: `choose_concurrency`). It is closed at the end.
    on_oom: `accumulate` halves the micro-batch of a run that runs out of memory, and of all that it is compared with;
    what was done with more is trained, and yielded, again. search: of a tuned sweep, whose round under way is
    `planned`; the next ones follow. `started(run)` is called before each run and gives the observer of its updates;
    `counted` is told how much of the audit is done. kernels: those that are compiled meanwhile, which are waited for.
    """
    remove_abandoned()
    left = [run.spec for run in planned if run.is_left and (retry_failed or run.status != "failed")]
    try:
        check_origins(left, store)
        kernels.wait(notify, counted)
        _refuse_leaks(left, len(left) == len(planned), execution, notify, counted)
        identity = _record_sweep(sweep, planned, search, Path(store), execution, command, notify)
    except BaseException:
        if launcher is not None:
            launcher.close()
        raise
    if launcher is None:
        at_a_time = choose_concurrency(planned, execution) if concurrency is None else concurrency
        launcher = Here(store, execution, at_a_time, notify)
    schedule = _Schedule(planned, Path(store), MicroBatches(planned, store) if on_oom == "accumulate" else None, notify)
    try:
        while True:
            if not schedule.goes_on():
                if search is None or not (more := search.next()):
                    break
                schedule.add(more)
                _record_sweep(sweep, more, search, Path(store), execution, command, lambda message: None)
            if schedule.only_the_crowded_are_left():
                launcher.one_at_a_time()
            while launcher.has_room() and (run := schedule.next()):
                try:
                    spec = schedule.spec_of(run)
                except RunBusyError:
                    schedule.is_busy(run)
                    continue
                again = retry_failed and run.run_id not in schedule.elsewhere
                launcher.begin(Job(spec, identity, again, on_oom == "accumulate", run_id=run.run_id), started(run))
                schedule.active[run.run_id] = run
            if not schedule.active:
                time.sleep(BUSY_SECONDS)
                schedule.look_again()
                continue
            ended = launcher.turn()
            if ended is None:
                continue
            job, outcome = ended
            run = schedule.active.pop(job.run_id)
            match outcome:
                case Ended(record, lost):
                    schedule.has_ended(run, record)
                    yield record
                    if lost:
                        raise DeviceError(f"{failures.LOST} in {run.run_id}; the same command goes on with the others")
                case Died(how, log):
                    record = record_death(job, Path(store), how, log)
                    schedule.has_ended(run, record)
                    yield record
                case Busy():
                    schedule.is_busy(run)
                case Crowded(why):
                    schedule.is_crowded(run, why)
                case TooManyWindows(fewer):
                    schedule.is_cut(run, fewer)
                case Refused(error):
                    raise error
    finally:
        launcher.close()
        if Path(store).is_dir():  # it may have vanished
            with suppress(StoreError):  # a cache
                index.update_now(Path(store))


class _Schedule:
    """The runs of a sweep that wait, are under way, or are put off."""

    def __init__(
        self,
        planned: Sequence[PlannedRun],
        store: Path,
        micro_batches: MicroBatches | None,
        notify: Callable[[str], None],
    ) -> None:
        self.store, self.micro_batches, self.notify = store, micro_batches, notify
        self.waiting: deque[PlannedRun] = deque()
        self.active: dict[str, PlannedRun] = {}
        self.crowded: list[PlannedRun] = []
        """To be trained one at a time when all others have ended."""
        self.elsewhere: dict[str, float] = {}
        """Runs that another process trains, and when they were last looked at."""
        self.done: set[str] = set()
        """Runs that others can start from."""
        self.add(planned)

    def add(self, planned: Sequence[PlannedRun]) -> None:
        """Train these runs, too."""
        self.waiting.extend(run for run in planned if not run.problem)
        self.done |= {run.run_id for run in planned if run.status == "done"}
        for run in planned:
            if run.problem:
                self._give_up(run.run_id, partial(_damaged_parent, run.run_id))

    def goes_on(self) -> bool:
        """Whether a run is under way or left."""
        return bool(self.waiting or self.active or self.crowded)

    def only_the_crowded_are_left(self) -> bool:
        """Whether only runs are left that must be alone. If so they wait like others from now on."""
        put_off = {run.run_id for run in self.crowded}
        if self.active or any(run.parent not in put_off for run in self.waiting):
            return False
        self.waiting.extend(self.crowded)
        self.crowded.clear()
        return True

    def next(self) -> PlannedRun | None:
        """Take the next run off those that wait; None where each of them was looked at a moment ago, or waits for its
        parent."""
        now = time.monotonic()
        for place, run in enumerate(self.waiting):
            if run.parent is not None and run.parent not in self.done:
                continue
            if now - self.elsewhere.get(run.run_id, -math.inf) >= BUSY_SECONDS:
                del self.waiting[place]  # by its place: runs are slow to compare
                return run
        return None

    def spec_of(self, run: PlannedRun) -> RunSpec:
        """The spec to train the run with. Raises RunBusyError where another process trains it."""
        if status(self.store, run.run_id) == "running":
            raise RunBusyError(run.run_id)
        return self.micro_batches.agree(run, self.store) if self.micro_batches else run.spec

    def look_again(self) -> None:
        """Let `next` return any run that waits, for time has passed."""
        self.elsewhere = dict.fromkeys(self.elsewhere, -math.inf)

    def has_ended(self, run: PlannedRun, record: RunRecord) -> None:
        """Let the runs that start from this one begin; where it failed, give them up."""
        if record.status == "done":
            self.done.add(run.run_id)
            return
        self._give_up(run.run_id, lambda n: without_parent(record, n))

    def _give_up(self, parent: str, message: Callable[[int], str]) -> None:
        """Take the children of a parent off those that wait, and say so; message(how many they are)."""
        if n := sum(run.parent == parent for run in self.waiting):
            self.notify(message(n))
            self.waiting = deque(run for run in self.waiting if run.parent != parent)

    def is_busy(self, run: PlannedRun) -> None:
        """Put off a run that another process trains."""
        if run.run_id not in self.elsewhere:
            self.notify(f"{run.run_id} is being trained by another process; it is looked at again later")
        self.elsewhere[run.run_id] = time.monotonic()
        self.waiting.append(run)

    def is_crowded(self, run: PlannedRun, why: str) -> None:
        """Put off a run until it can be alone."""
        self.crowded.append(run)
        self.notify(f"{run.run_id} {why}; it is trained alone afterwards")

    def is_cut(self, run: PlannedRun, fewer: int) -> None:
        """Train the run, and all that it is compared with, with `fewer` windows at a time."""
        assert self.micro_batches is not None
        others = self.micro_batches.lower(run, fewer, self.store)
        waiting = {other.run_id for other in self.waiting}
        self.waiting.extend(other for other in others if other.run_id not in waiting)
        self.waiting.appendleft(run)
        more = f", and so are {len(others)} done runs that it is compared with" if others else ""
        self.notify(f"{run.run_id} ran out of memory; it is trained with {fewer} windows at a time{more}")


def _damaged_parent(name: str, n_children: int) -> str:
    return f"{count(n_children, 'run')} not trained: the parent {name} is damaged"


def _record_sweep(
    sweep: Sweep,
    planned: Sequence[PlannedRun],
    search: Search | None,
    store: Path,
    execution: Execution,
    command: list[str] | None,
    notify: Callable[[str], None],
) -> str:
    """Write the sweep's record; returns its id. The verdict stays what it was when the sweep began."""
    identity = sweep_id(sweep, planned) if search is None else search.identity
    spec, created = sweep.plain(), {}
    if (store / "sweeps" / f"{identity}.json").exists():
        try:
            before = read_sweep(store, identity)
        except StoreError as error:
            raise type(error)(f"{error}; {OF_A_SWEEP}") from error
        created = {"created": before.created}
        first = before.spec.get("verdict", spec["verdict"])
        if first != spec["verdict"]:  # a margin moved after runs were seen proves nothing
            notify(
                f"the verdict of this sweep was fixed when it began: {first}, and stays so; "
                "`dsabench compare --margin` shows another"
            )
        spec["verdict"] = first
    record = SweepRecord(
        id=identity,
        **created,
        spec=spec,
        run_ids=[run.run_id for run in of_sweep(planned)] if search is None else search.run_ids(),
        parents=[run.run_id for run in planned if run.for_children],
        rungs=rungs(sweep, store),
        tuning=None if search is None else search.record(),
        command=command,
        environment=environment(execution),
    )
    write_sweep(store, record)
    return identity


def _refuse_leaks(
    specs: Sequence[RunSpec],
    are_all: bool,
    execution: Execution,
    notify: Callable[[str], None],
    counted: Callable[[str, float], None],
) -> None:
    """Audit every model before the first run is trained, so that a leak is not found hours later. Raises LeakError.

    Those of runs that were interrupted again: what computes them may have changed. are_all: whether these are all runs
    of the sweep.
    """
    vocab_sizes: dict[DataSpec, int] = {}
    wanted = {spec.model_dump_json(include={"attention", "length", "model"}): _audit_weight(spec) for spec in specs}
    total, done = sum(wanted.values()), 0.0
    for i, spec in enumerate(specs):
        if i == 0:
            whose = "" if are_all else f" of the {count(len(specs), 'run')} that {is_or_are(len(specs))} left"
            notify(f"auditing the models{whose} for look-ahead")
            counted(AUDIT, 0.0)
        if spec.data not in vocab_sizes:
            vocab_sizes[spec.data] = data_package.prepare(spec.data).vocab_size
        gate.refuse_leaks(spec, vocab_sizes[spec.data], execution)
        if weight := wanted.pop(spec.model_dump_json(include={"attention", "length", "model"}), 0.0):
            done += weight  # runs that differ in their seed alone are audited once
            counted(AUDIT, min(1.0, done / total))


def _audit_weight(spec: RunSpec) -> float:
    """The time of a model's audit, roughly: a selecting attention is tried in two stages."""
    return 1.0 if spec.attention.n_selected(spec.length) is None else 3.0
