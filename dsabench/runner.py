"""Running specs: one run, or a whole sweep, from text to record; the Python API behind `train` and `sweep`."""

from __future__ import annotations

import hashlib
import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsabench import data as data_package
from dsabench.attention.registry import plugin_digest
from dsabench.data import Windows
from dsabench.engine import checkpoint, loop
from dsabench.engine.device import Execution, environment, matmul_rate, resolve
from dsabench.engine.loop import TrainingDiverged, Update
from dsabench.errors import DsabenchError, StoreError
from dsabench.model.transformer import Transformer, build, flops_per_window
from dsabench.spec.fields import DataSpec, RunSpec
from dsabench.spec.identity import run_id
from dsabench.spec.sweep import DEFAULT_CONFIG, Sweep, load_sweep, validate
from dsabench.store import (
    RunDoneError,
    RunRecord,
    RunWriter,
    SweepRecord,
    find_checkpoint,
    read_run,
    read_sweep,
    write_sweep,
)


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

    Raises StoreError when there is no such run or it has no checkpoint.
    """
    record = read_run(store, run_id)
    folder = find_checkpoint(store, record.run_id)
    if folder is None:
        raise StoreError(f"run {record.run_id} ({record.status}) has no checkpoint in {store}")
    spec = validate(record.spec)
    model = Transformer(spec, checkpoint.vocab_size(folder))
    checkpoint.load_weights(folder, model)
    return model.eval()


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep, its identity, and what the store already has of it."""

    spec: RunSpec
    run_id: str
    status: str
    """`new`, or the status that the store's record has."""


def plan(specs: Sequence[RunSpec], store: str | Path) -> list[PlannedRun]:
    """The runs in order, with their identities and the store's status. Reads the corpus, trains nothing."""
    digests: dict[DataSpec, dict[str, str]] = {}
    planned: dict[str, PlannedRun] = {}
    for spec in specs:
        key = spec.data
        if key not in digests:
            digests[key] = data_package.fingerprint(spec.data)
        identity = run_id(spec, _fingerprint(spec, digests[key]))
        planned.setdefault(identity, PlannedRun(spec, identity, _status(store, identity)))
    return list(planned.values())


def _status(store: str | Path, identity: str) -> str:
    if not (Path(store) / identity / "run.json").exists():
        return "new"
    return read_run(store, identity).status


def _fingerprint(spec: RunSpec, corpus: dict[str, str]) -> dict[str, str]:
    plugin = plugin_digest(spec.attention.kind)
    return {**corpus, **({"plugin": plugin} if plugin else {})}


def estimate_seconds(planned: Sequence[PlannedRun], execution: Execution) -> float:
    """A rough time for the runs that are not done: training FLOPs at a share of the measured matrix-product rate that
    small models reach, or launch-bound time a step where that is longer, and evaluation as forward FLOPs."""
    rate = matmul_rate(execution.device, execution.precision) * (0.35 if execution.device.type == "cpu" else 0.15)
    floor = 5e-3 if execution.graph else 1e-3 if execution.device.type == "cpu" else 20e-3
    seconds = 0.0
    for run in planned:
        if run.status == "done":
            continue
        spec = run.spec
        with torch.device("meta"):
            model = Transformer(spec, spec.data.vocab_size)
        window = sum(flops_per_window(model, "sparse").values())
        evaluations = spec.train.steps / spec.train.eval_every + 1
        seconds += spec.train.steps * max(floor, window * spec.batch_size / rate)
        seconds += evaluations * 2 * (spec.train.eval_tokens / spec.length) * (window / 3) / rate
        seconds += 3.0 if execution.graph else 0.5  # start, captures, checkpoints
    return seconds


def check_data(planned: Sequence[PlannedRun], notify: Callable[[str], None] = lambda message: None) -> None:
    """Prepare the data of every run that is to be trained, and raise DataError when a length does not fit it.

    Before the first run of a sweep, so that a length too long for the documents is not found hours later.
    """
    for run in planned:
        if run.status != "done":
            Windows(data_package.prepare(run.spec.data, progress=notify), run.spec.length)


def train(
    spec: RunSpec,
    store: str | Path = "runs",
    *,
    sweep: str | None = None,
    retry_failed: bool = False,
    observe: Callable[[Update], None] = lambda update: None,
    notify: Callable[[str], None] = lambda message: None,
) -> RunRecord:
    """Train one run and store it; a run that is done is returned as it is, an interrupted one resumes.

    A run that fails (a loss that is not finite, out of memory) is returned with status `failed` and its reason;
    a stored failure is returned again unless `retry_failed`. Raises DsabenchError for bad input before anything is
    written, and lets KeyboardInterrupt through after marking the run `interrupted`.
    """
    execution = resolve(spec.engine)
    data = data_package.prepare(spec.data, progress=notify)
    windows = Windows(data, spec.length)  # raises before the run exists when no document holds a window
    notes = [*data.notes, *windows.notes]
    for note in notes:
        notify(note)
    fingerprint = _fingerprint(spec, data.fingerprint)
    identity = run_id(spec, fingerprint)
    if not retry_failed and _status(store, identity) == "failed":
        return read_run(store, identity)
    try:
        writer = RunWriter.open(
            Path(store),
            identity,
            spec=spec.model_dump(mode="json"),
            fingerprint=fingerprint,
            environment={**environment(execution), "data_notes": notes},
            sweep=sweep,
        )
    except RunDoneError as done:
        return done.record
    with writer:
        try:
            summary = loop.train(spec, data, execution, writer, observe)
        except KeyboardInterrupt:
            writer.finish("interrupted")
            raise
        except TrainingDiverged as error:
            return writer.finish("failed", error=str(error))
        except torch.OutOfMemoryError as error:
            return writer.finish("failed", error=_out_of_memory(spec, error))
        except DsabenchError:
            writer.finish("interrupted")
            raise
        except Exception as error:
            (writer.path / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            writer.finish("failed", error=f"{type(error).__name__}: {error} (traceback.txt in the run's folder)")
            raise
        return writer.finish("done", summary=summary)


def _out_of_memory(spec: RunSpec, error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else "out of memory"
    return (
        f"out of GPU memory: {first} Lower train.tokens_per_step (now {spec.tokens_per_step} tokens a step), "
        f"length ({spec.length}) or model.d_model ({spec.model.d_model})"
    )


def run_sweep(
    sweep: Sweep,
    planned: Sequence[PlannedRun],
    store: str | Path,
    *,
    command: list[str] | None = None,
    retry_failed: bool = False,
    started: Callable[[PlannedRun], Callable[[Update], None]] = lambda run: lambda update: None,
    notify: Callable[[str], None] = lambda message: None,
) -> Iterator[RunRecord]:
    """Train the planned runs in order, yielding each one's record; a run that fails does not stop the others.

    `started(run)` is called before each run and gives the observer of its updates.
    """
    execution = resolve(planned[0].spec.engine)
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
        command=command,
        environment=environment(execution),
    )
    write_sweep(Path(store), record)
    for run in planned:
        observe = started(run)
        try:
            yield train(run.spec, store, sweep=record.id, retry_failed=retry_failed, observe=observe, notify=notify)
        except DsabenchError:
            raise
        except Exception:  # a bug, in a plugin perhaps: the run is stored as failed with its reason, the rest go on
            if _status(store, run.run_id) != "failed":
                raise
            yield read_run(store, run.run_id)


def sweep_id(sweep: Sweep, planned: Sequence[PlannedRun]) -> str:
    """<config name>-<8 hex over the run ids>: the same sweep is the same record."""
    text = json.dumps(sorted(run.run_id for run in planned))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", sweep.name).strip("-._")[:100] or "sweep"
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
