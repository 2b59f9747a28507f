"""Running specs: one run, or a whole sweep, from text to record; the Python API behind `train` and `sweep`."""

from __future__ import annotations

import gc
import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

from dsabench import data as data_package
from dsabench.data import cut
from dsabench.engine import checkpoint, failures, gate, loop, memory, processes
from dsabench.engine.device import environment, resolve
from dsabench.engine.sink import Update
from dsabench.engine.slot import Slots
from dsabench.errors import DeviceError, DsabenchError, StoreError
from dsabench.microbatches import MicroBatches
from dsabench.model.transformer import Transformer, build, outline
from dsabench.planning import PlannedRun, choose_concurrency, fingerprint, rungs, status
from dsabench.spec.fields import DataSpec, RunSpec
from dsabench.spec.identity import run_id
from dsabench.spec.stored import stored_spec
from dsabench.spec.sweep import DEFAULT_CONFIG, Sweep, load_sweep
from dsabench.stopping import deferred
from dsabench.store import (
    RunBusyError,
    RunDoneError,
    RunRecord,
    RunWriter,
    SweepRecord,
    find_checkpoint,
    read_run,
    read_sweep,
    write_sweep,
)

BUSY_SECONDS = 0.5
"""Time between looks at runs that another process trains, when nothing else is left to do."""


def load_spec(name_or_path: str = DEFAULT_CONFIG, overrides: Mapping[str, Any] | None = None) -> RunSpec:
    """The RunSpec of a config: the first value of each axis, unless `overrides` ({field path: value}) choose.

    Raises SpecError.
    """
    sweep = load_sweep(name_or_path)
    for path, value in sorted((overrides or {}).items(), key=lambda item: item[0] != "plugins"):  # kinds come from them
        sweep.set(path, value, "overrides: ")
    return sweep.first()


def build_model(spec: RunSpec) -> Transformer:
    """The spec's model with its initial weights, on the CPU in fp32; model(tokens_BT).logits_BTV.

    Prepares the spec's data, because the vocabulary is part of the model. Raises DataError.
    """
    return build(spec, data_package.prepare(spec.data).vocab_size)


def load_model(store: str | Path, run_id: str) -> Transformer:
    """The model of a stored run with its last checkpoint's weights, on the CPU in fp32, in eval mode.

    Executes the plugin file that a run with an attention of its own names; inside `no_plugins` such a run is refused.
    Raises StoreError when there is no such run or it has no checkpoint, SpecError when its record holds no valid spec.
    """
    record = read_run(store, run_id)
    folder = find_checkpoint(store, record.run_id)
    if folder is None:
        raise StoreError(f"run {record.run_id} ({record.status}) has no checkpoint in {store}")
    spec = stored_spec(record.spec, record.run_id)
    spec = spec.model_copy(update={"attention": spec.attention.anywhere()})
    vocab_size = checkpoint.vocab_size(folder)
    checkpoint.check_weights(folder, outline(spec, vocab_size))
    model = Transformer(spec, vocab_size)
    checkpoint.load_weights(folder, model)
    return model.eval()


def train(
    spec: RunSpec,
    store: str | Path = "runs",
    *,
    sweep: str | None = None,
    retry_failed: bool = False,
    data_parallel: int = 1,
    observe: Callable[[Update], None] = lambda update: None,
    notify: Callable[[str], None] = lambda message: None,
) -> RunRecord:
    """Train one run and store it; a run that is done is returned as it is, an interrupted one resumes.

    A run that fails (a loss that is not finite, out of memory, an exception in a plugin) is returned with status
    `failed` and its reason; a stored failure is returned again unless `retry_failed`. Raises DsabenchError for bad
    input before anything is written and when the store cannot be written (RunBusyError: another process trains the
    run), and lets KeyboardInterrupt through after a checkpoint and marking the run `interrupted`.

    data_parallel: processes that train it together, a GPU each (on a CPU, cores of it), on equal shares of every batch;
    the same run for every number of them. The store is written, and signals are heard, by this process alone.
    """
    slots = Slots()
    return loop.to_the_end(
        _training(spec, Path(store), sweep, retry_failed, observe, notify, slots, data_parallel=data_parallel)
    )


def _training(
    spec: RunSpec,
    store: Path,
    sweep: str | None,
    retry_failed: bool,
    observe: Callable[[Update], None],
    notify: Callable[[str], None],
    slots: Slots,
    halve: bool = False,
    data_parallel: int = 1,
) -> Generator[None, None, RunRecord]:
    """`train`, in a slot, yielding while the device is at work.

    Raises _NoRoomBesideOthersError when memory runs out in a slot that is not the only one, and with `halve`
    _TooManyWindowsError when it does with a micro-batch that can be halved.
    """
    execution = processes.spread(spec, resolve(spec.engine), data_parallel)
    data = data_package.prepare(spec.data, progress=notify)
    windows = cut(data, spec.length)  # raises before the run exists when no document holds a window
    notes = [*data.notes, *windows.notes]
    for note in notes:
        notify(note)
    digests = fingerprint(spec, data.fingerprint)
    identity = run_id(spec, digests)
    if not retry_failed and status(store, identity) == "failed":
        return read_run(store, identity)
    if status(store, identity) == "done":
        return read_run(store, identity)
    windows_at_a_time = memory.plan(spec, data.vocab_size, execution, share=1 / slots.count).micro_batch  # or raises
    audit = gate.refuse_leaks(spec, data.vocab_size, execution)
    for note in audit.notes(spec):
        notify(note)
    died = "" if retry_failed else failures.death(store / identity)
    about = {"concurrency": slots.count, "data_notes": notes, "audit": audit.record()}
    mark = {"leak": audit.leak if audit.crash is None else None}
    try:
        writer = RunWriter.open(
            store,
            identity,
            spec=spec.model_dump(mode="json"),
            fingerprint=digests,
            environment={**environment(execution), **about},
            sweep=sweep,
        )
    except RunDoneError as done:
        return done.record
    with writer:
        if died:
            reason = f"its process died: {died.splitlines()[0]} ({failures.LOG}); --retry-failed runs it again"
            return writer.finish("failed", summary=mark, error=reason, log=died)
        try:
            if audit.crash is not None:  # no answer, and the training would only meet it again
                raise audit.crash
            listening = failures.deaths(writer.path) if slots.count == 1 else nullcontext()
            with listening:
                if data_parallel > 1:
                    summary = processes.train(spec, identity, data.fingerprint, execution, writer, observe)
                else:
                    summary = yield from loop.train(spec, data, execution, writer, observe, slots)
        except (KeyboardInterrupt, GeneratorExit, DsabenchError):
            writer.finish("interrupted", summary=mark)
            raise
        except Exception as error:
            fewer = failures.smaller(spec.batch_size, windows_at_a_time) if halve else None
            if failures.is_out_of_memory(error) and (slots.count > 1 or fewer):
                writer.finish("interrupted", summary=mark)
                raise (_NoRoomBesideOthersError() if slots.count > 1 else _TooManyWindowsError(fewer)) from None
            if slots.count > 1 and failures.is_lost(execution):
                writer.finish("interrupted", summary=mark)
                raise DeviceError(f"{failures.LOST}, shared by {slots.count} runs: give --concurrency 1") from error
            reason = failures.reason(spec, error, windows_at_a_time)
            return writer.finish("failed", summary=mark, error=reason, log=failures.log(error))
        with deferred():  # done is done
            return writer.finish("done", summary={**summary, **mark})


class _NoRoomBesideOthersError(Exception):
    """The run needs the device for itself."""


class _TooManyWindowsError(Exception):
    """The run needs a smaller micro-batch, which is the argument."""


def run_sweep(
    sweep: Sweep,
    planned: Sequence[PlannedRun],
    store: str | Path,
    *,
    command: list[str] | None = None,
    retry_failed: bool = False,
    concurrency: int | None = None,
    on_oom: Literal["fail", "accumulate"] = "fail",
    started: Callable[[PlannedRun], Callable[[Update], None]] = lambda run: lambda update: None,
    notify: Callable[[str], None] = lambda message: None,
) -> Iterator[RunRecord]:
    """Train the planned runs in order, `concurrency` of them at a time, yielding each one's record when it ends; a run
    that fails does not stop the others, and one that another process trains is waited for.

    concurrency: None chooses (`choose_concurrency`). on_oom: `accumulate` halves the micro-batch of a run that runs out
    of memory, and of all that it is compared with; what was done with more is trained, and yielded, again.
    `started(run)` is called before each run and gives the observer of its updates.
    """
    execution = resolve(planned[0].spec.engine)
    _refuse_leaks([run.spec for run in planned if run.status != "done"], notify)
    identity = sweep_id(sweep, planned)
    spec, created = sweep.plain(), {}
    if (Path(store) / "sweeps" / f"{identity}.json").exists():
        before = read_sweep(store, identity)
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
        run_ids=[run.run_id for run in planned],
        rungs=rungs(sweep),
        command=command,
        environment=environment(execution),
    )
    write_sweep(Path(store), record)
    slots = Slots(choose_concurrency(planned, execution) if concurrency is None else concurrency)
    micro_batches = MicroBatches(planned, store) if on_oom == "accumulate" else None
    waiting, active = deque(planned), deque[tuple[PlannedRun, Generator[None, None, RunRecord]]]()
    lonely: list[PlannedRun] = []
    elsewhere: set[str] = set()
    found_no_memory = False

    def begin(run: PlannedRun, slots: Slots) -> Generator[None, None, RunRecord]:
        if status(store, run.run_id) == "running":
            raise RunBusyError(run.run_id)
        spec = micro_batches.agree(run, store) if micro_batches else run.spec
        again = retry_failed and run.run_id not in elsewhere
        halve = micro_batches is not None
        return (yield from _training(spec, Path(store), record.id, again, started(run), notify, slots, halve))

    try:
        while waiting or active or lonely:
            if not waiting and not active:
                slots = Slots()  # the memory of those before is needed
                waiting.extend(lonely)
                lonely.clear()
            if not active and all(r.run_id in elsewhere and status(store, r.run_id) == "running" for r in waiting):
                time.sleep(BUSY_SECONDS)
            if found_no_memory:
                gc.collect()  # what the run had may still lie in cycles
                found_no_memory = False
            while waiting and len(active) < slots.count:
                run = waiting.popleft()
                active.append((run, begin(run, slots)))
            run, training = active.popleft()
            try:
                next(training)
                active.append((run, training))
            except StopIteration as end:
                yield end.value
                if end.value.status == "failed" and failures.is_lost(execution):
                    raise DeviceError(
                        f"{failures.LOST} in {run.run_id}; the same command goes on with the others"
                    ) from None
            except RunBusyError:
                if run.run_id not in elsewhere:
                    notify(f"{run.run_id} is being trained by another process; it is looked at again later")
                elsewhere.add(run.run_id)
                waiting.append(run)
            except _NoRoomBesideOthersError:
                lonely.append(run)
                found_no_memory = True
                notify(f"{run.run_id} found no memory beside other runs; it is trained alone afterwards")
            except _TooManyWindowsError as few:
                assert micro_batches is not None
                found_no_memory = True
                others = micro_batches.lower(run, few.args[0], store)
                waiting.extend(other for other in others if other not in waiting)
                waiting.appendleft(run)
                more = f", and so are {len(others)} done runs that it is compared with" if others else ""
                notify(f"{run.run_id} ran out of memory; it is trained with {few.args[0]} windows at a time{more}")
    finally:
        for _, training in active:
            with suppress(StoreError):  # of the others each is to be closed
                training.close()  # has the run checkpointed and marked interrupted


def _refuse_leaks(specs: Sequence[RunSpec], notify: Callable[[str], None]) -> None:
    """Before the first run of a sweep is trained, so that a leak is not found hours later. Raises LeakError."""
    vocab_sizes: dict[DataSpec, int] = {}
    for i, spec in enumerate(specs):
        if i == 0:
            notify("auditing the models for look-ahead")
        if spec.data not in vocab_sizes:
            vocab_sizes[spec.data] = data_package.prepare(spec.data).vocab_size
        gate.refuse_leaks(spec, vocab_sizes[spec.data], resolve(spec.engine))


def sweep_id(sweep: Sweep, planned: Sequence[PlannedRun]) -> str:
    """<config name>-<8 hex over the run ids>: the same sweep is the same record."""
    text = json.dumps(sorted(run.run_id for run in planned))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", sweep.name).strip("-._")[:100] or "sweep"
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
