"""One run, from spec to record; the Python API behind `dsabench train`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsabench import data as data_package
from dsabench.audit import gate
from dsabench.compilation.ahead import NOTHING, Kernels, compiling, shapes_of
from dsabench.data import cut
from dsabench.engine import failures, loop, memory_plan
from dsabench.engine.data_parallel import leader
from dsabench.engine.device import Execution, environment, resolve
from dsabench.engine.prepared_run import PreparedRun, unobserved
from dsabench.engine.random_state import kept_random_state
from dsabench.engine.sink import Update
from dsabench.engine.slot import Slots
from dsabench.errors import DeviceError, DsabenchError, StoreError
from dsabench.progress.time_left import AUDIT
from dsabench.shutdown import deferred
from dsabench.spec.identity import run_id
from dsabench.spec.parent_spec import parent_spec
from dsabench.spec.run import RunSpec
from dsabench.store import RunDoneError, RunRecord, RunWriter, read_run
from dsabench.sweeps.launcher import RunJob
from dsabench.sweeps.origin import check_origins, check_shapes, fingerprint, identity_of, origin_of, start_digest
from dsabench.sweeps.plan import check_longer, plan, status, timetable
from dsabench.user_folders import remove_abandoned


@kept_random_state()
def train(
    spec: RunSpec,
    store: str | Path = "runs",
    *,
    sweep: str | None = None,
    retry_failed: bool = False,
    data_parallel: int = 1,
    progress: bool = True,
    observe: Callable[[Update], None] = unobserved,
    notify: Callable[[str], None] = lambda message: None,
    counted: Callable[[str, float], None] = lambda part, share: None,
) -> RunRecord:
    """Train one run and store it; a run that is done is returned as it is, an interrupted one resumes. The parent of
    `start.parent` is trained before, as a run of its own, where the store does not have it.

    A run that fails (a loss that is not finite, out of memory, an exception in a plugin) is returned with status
    `failed` and its reason; a stored failure is returned again unless `retry_failed`. Raises DsabenchError for bad
    input before anything is written and when the store cannot be written (RunBusyError: another process trains the
    run), and lets KeyboardInterrupt through after a checkpoint and marking the run `interrupted`.

    data_parallel: processes that train it together, a GPU each (on a CPU, cores of it), on equal shares of every batch;
    the same run for every number of them. The store is written, and signals are heard, by this process alone.

    progress: whether a terminal on stderr shows a bar. `observe` is given updates of the run, `notify` lines for the
    user, and `counted` the share that is done of what comes before the first step.
    """
    remove_abandoned()
    _train_parent(spec, store, retry_failed, data_parallel, progress, observe, notify, counted)
    job = RunJob(spec, sweep, retry_failed, data_parallel=data_parallel)
    place = Place(Path(store), resolve(spec.engine), Slots(), notify, counted)
    with compiling(shapes_of([spec], place.execution), place.execution) as kernels:
        return _shown(job, replace(place, kernels=kernels), progress, observe)


def _shown(job: RunJob, place: Place, progress: bool, observe: Callable[[Update], None]) -> RunRecord:
    """Train the job at the place, on a terminal beneath a bar where `progress` asks for it."""
    if not (progress and sys.stderr.isatty()):
        return loop.to_the_end(train_by_turns(job, place, observe))
    from dsabench.progress.display import Display  # rich, which draws random numbers of the process when it is loaded

    spec = job.spec

    times = timetable(plan([spec], place.store), leader.spread(spec, place.execution, job.data_parallel))
    with Display(times, lines=False) as display:
        show = display.start(next(iter(times.runs)), label_of(spec)) if times.runs else unobserved

        def both(update: Update) -> None:
            show(update)
            observe(update)

        return loop.to_the_end(train_by_turns(job, replace(place, counted=display.counted), both))


def _train_parent(spec: RunSpec, store: str | Path, retry_failed: bool, *rest: Any) -> None:
    """Train the parent that the run starts from, if it has one and that is not done; `rest`: arguments of `train`.

    Raises StoreError where it fails.
    """
    parent = parent_spec(spec)
    kept = ("done",) if retry_failed else ("done", "failed")
    if parent is None or status(store, identity_of(spec, store)[0]) in kept:
        return
    check_origins([spec], store)
    data_parallel, progress, observe, notify, counted = rest
    record = train(
        parent,
        store,
        retry_failed=retry_failed,
        data_parallel=data_parallel,
        progress=progress,
        observe=observe,
        notify=notify,
        counted=counted,
    )
    if record.status != "done":
        raise StoreError(without_parent(record, 1))


def without_parent(parent: RunRecord, n_children: int) -> str:
    """The message for runs whose parent failed."""
    first = (parent.error or "no reason is recorded").splitlines()[0]
    those = "1 run starts" if n_children == 1 else f"{n_children} runs start"
    return (
        f"{those} from {parent.run_id}, which is {parent.status} ({first}); nothing was trained from it. When it is "
        "mended, --retry-failed trains it again"
    )


def label_of(spec: RunSpec) -> str:
    """A run's name where it is the only one: 'dsa L=128 seed=42'."""
    return f"{spec.attention.kind} L={spec.length} seed={spec.seed}"


@dataclass(frozen=True)
class Place:
    """Where runs are trained and stored."""

    store: Path
    execution: Execution
    slots: Slots
    notify: Callable[[str], None]
    """Told each line for the user."""

    counted: Callable[[str, float], None] = lambda part, share: None
    """Told a part of what comes before the first step, and the share of it that is done."""

    kernels: Kernels = NOTHING
    """Those that are compiled meanwhile."""


def train_by_turns(job: RunJob, place: Place, observe: Callable[[Update], None]) -> Generator[None, None, RunRecord]:
    """As `train`, in one of the place's slots, yielding while the device is at work.

    Raises NoRoomBesideOthersError when memory runs out beside other slots; where job.halve asks for it,
    TooManyWindowsError when memory runs out with a micro-batch that can be halved; DeviceLostError.
    """
    spec, store, slots, notify = job.spec, place.store, place.slots, place.notify
    execution = leader.spread(spec, place.execution, job.data_parallel)
    data = data_package.prepare(spec.data, progress=notify, counted=place.counted)
    windows = cut(data, spec.length)  # raises before the run exists when no document holds a window
    check_longer(data, spec.length, spec.train.eval_multiples)
    notes = [*data.notes, *windows.notes]
    for note in notes:
        notify(note)
    start = job.origin.key if job.origin else start_digest(spec, store, data.fingerprint)
    digests = fingerprint(spec, data.fingerprint, start)
    identity = run_id(spec, digests)
    if not job.retry_failed and status(store, identity) == "failed":
        return read_run(store, identity)
    if status(store, identity) == "done":
        return read_run(store, identity)
    windows_at_a_time = memory_plan.plan(
        spec, data.vocab_size, execution, share=1 / slots.count
    ).micro_batch  # or raises
    origin = job.origin or origin_of(spec, store, digests, notify)
    if origin is not None:
        check_shapes(spec, data.vocab_size, origin)
    point = None if origin is None else origin.point
    place.kernels.wait(notify, place.counted)
    place.counted(AUDIT, 0.0)
    audit = gate.refuse_leaks(spec, data.vocab_size, execution, point)
    place.counted(AUDIT, 1.0)
    for note in audit.notes(spec):
        notify(note)
    died = "" if job.retry_failed else failures.death(store / identity)
    about: dict[str, Any] = {"concurrency": slots.count, "data_notes": notes, "audit": audit.record()}
    about |= {"text_versions": dict(data.versions)} if data.versions else {}
    about |= {"start": origin.about} if origin is not None else {}
    mark = {"leak": audit.leak if audit.crash is None else None}
    try:
        writer = RunWriter.open(
            store,
            identity,
            spec=spec.model_dump(mode="json"),
            fingerprint=digests,
            environment={**environment(execution), **about},
            sweep=job.sweep,
            tell=notify,
        )
    except RunDoneError as done:
        return done.record
    with writer:
        if died:
            return writer.finish("failed", summary=mark, error=failures.of_death(died.splitlines()[0]), log=died)
        try:
            if audit.crash is not None:  # training would raise the same
                raise audit.crash
            listening = failures.deaths(writer.path) if slots.count == 1 else nullcontext()
            run = PreparedRun(spec, data, execution, writer, observe, point)
            with listening:
                if execution.ranks.size > 1:
                    summary = leader.train_with_ranks(run, identity)
                else:
                    summary = yield from loop.train_steps(run, slots)
        except (KeyboardInterrupt, GeneratorExit, DsabenchError):
            writer.finish("interrupted", summary=mark)
            raise
        except Exception as error:
            fewer = failures.smaller(spec.batch_size, windows_at_a_time) if job.halve else None
            if failures.is_out_of_memory(error) and (slots.count > 1 or fewer):
                writer.finish("interrupted", summary=mark)
                raise (
                    TooManyWindowsError(fewer) if slots.count == 1 and fewer else NoRoomBesideOthersError()
                ) from None
            if slots.count > 1 and failures.is_lost(execution):
                writer.finish("interrupted", summary=mark)
                raise DeviceLostError(f"{failures.LOST}, shared by {slots.count} runs: give --concurrency 1") from error
            reason = failures.reason(spec, error, windows_at_a_time)
            return writer.finish("failed", summary=mark, error=reason, log=failures.log(error))
        with deferred():  # a run that is trained to its end is recorded as done, whatever signal comes now
            return writer.finish("done", summary={**summary, **mark})


class DeviceLostError(DeviceError):
    """The device fails every call from now on, and it is not known which of several runs is to blame."""


class NoRoomBesideOthersError(Exception):
    """The run needs the device for itself."""


class TooManyWindowsError(Exception):
    """The run needs a smaller micro-batch."""

    def __init__(self, fewer: int) -> None:
        self.fewer = fewer
        """The one to try."""
