"""Training a stored run again, and whether the second time gives the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsabench import data as data_package
from dsabench._version import __version__
from dsabench.analysis.provenance import TEXT_VERSIONS
from dsabench.data import Survey
from dsabench.engine.checkpoint import steps_done
from dsabench.engine.device import Execution, default_device, environment, resolve
from dsabench.engine.loop import to_the_end
from dsabench.engine.prepared_run import unobserved
from dsabench.engine.random_state import kept_random_state
from dsabench.engine.slot import Slots
from dsabench.errors import DataError, DeviceError, ScopeError, SpecError, StoreError
from dsabench.reproduction.compare_records import (
    Records,
    Weights,
    check_weights_file,
    compare_records,
    compare_weights,
    summary_record,
)
from dsabench.reproduction.environments import (
    Change,
    changes,
    environment_changes,
    may_vary,
    reasons,
    remedies,
    text,
    unrecorded,
)
from dsabench.spec.foreign_folder import WEIGHTS
from dsabench.spec.foreign_start import with_foreign_model
from dsabench.spec.parent_spec import parent_spec
from dsabench.spec.run import RunSpec, validate
from dsabench.spec.stored_spec import needed_plugins
from dsabench.store import RunRecord, find_checkpoint, find_run, read_metrics
from dsabench.store.layout import run_folder
from dsabench.store.records import DamagedError
from dsabench.store.verification import checkpoint_damage
from dsabench.sweeps import plan
from dsabench.sweeps.launcher import RunJob
from dsabench.sweeps.origin import fingerprint, origin_of
from dsabench.sweeps.single_run import Place, train_by_turns, without_parent
from dsabench.user_folders import expanded, temporary_folder

Verdict = Literal["same bits", "within tolerance", "differs"]


@dataclass(frozen=True)
class Reproduction:
    """A stored run, and the run of the same spec that was trained to compare with it."""

    original: RunRecord
    again: RunRecord
    records: Records
    weights: Weights | None
    """The weights compared; None when the checkpoints are not both there and of one step."""

    tolerance: float | None
    kept: Path | None
    """The store of the second run; None when it was temporary."""

    @property
    def verdict(self) -> Verdict:
        """The verdict on all records and the weights; a tolerance applies to losses alone."""
        if self.again.status != self.original.status and self.original.status != "interrupted":
            return "differs"
        if self.records.all_same and (self.weights is None or self.weights.all_same):
            return "same bits"
        near = self.tolerance is not None and self.records.within(self.tolerance)
        return "within tolerance" if near else "differs"

    @property
    def environment(self) -> list[Change]:
        """Entries in which the two environments differ."""
        return environment_changes(self.original, self.again)

    @property
    def reasons(self) -> list[Change]:
        """Differences that can change the bits of a result."""
        return reasons(self.original, self.again)

    @property
    def unrecorded(self) -> list[str]:
        """Entries that only one of the two recorded."""
        return unrecorded(self.original, self.again)

    @property
    def may_vary(self) -> bool:
        """Whether one of the two ran on a GPU without engine.deterministic, where the last bits vary anyway."""
        return may_vary(self.original) or may_vary(self.again)


@kept_random_state()
def reproduce(
    store: str | Path,
    run: str,
    *,
    into: str | Path | None = None,
    device: str | None = None,
    tolerance: float | None = None,
    plugins: Sequence[str] = (),
    observe: Callable[[RunSpec], Callable[[Any], None]] = lambda spec: lambda update: None,
    notify: Callable[[str], None] = lambda message: None,
) -> Reproduction:
    """Train the stored run `run` (the start of its id) again and compare: records step by step, what training computed
    of the summary, and final weights.

    into: the store that keeps the second run, never that of the first; None: a temporary one. device: None takes the
    kind of device that the run was trained on. tolerance: nats by which losses may be off. plugins: files that lie
    elsewhere now, by their names. `observe(spec)` gives the observer of the training's updates.

    Raises:
        StoreError: there is no such run, it has nothing to compare with or is damaged, or `into` holds it already.
        SpecError, DataError: its spec, plugin or data are not what they were.
        DeviceError: the device is not there.
    """
    original = find_run(store, run)
    metrics = _metrics(Path(store), original)
    if (saved := find_checkpoint(store, original.run_id)) is not None:  # not only when all is trained
        steps_done(saved)
        check_weights_file(saved)
        if wrong := checkpoint_damage(run_folder(Path(store), original.run_id), original):
            raise DamagedError(f"run {original.run_id}: its checkpoint is damaged ({wrong[0]})", original)
    spec = _spec(original, device, plugins)
    execution = _execution(original, spec, device)
    _same_files(original, data_package.survey(spec.data), spec)
    if into is None:
        with temporary_folder("keep the second run elsewhere (--into DIR)") as folder:
            found = _trained_again(spec, execution, original, Path(store), folder / "runs", observe, notify)
            return _compare(Path(store), original, metrics, folder / "runs", found, tolerance, kept=None)
    target = Path(into)
    if target.resolve() == Path(store).resolve():
        raise ScopeError(f"{target} is the store of the run itself, which is never written to; name another")
    if plan.status(target, original.run_id) in ("done", "failed"):
        raise StoreError(f"{target} holds run {original.run_id} already; name another store, or remove it there")
    found = _trained_again(spec, execution, original, Path(store), target, observe, notify)
    return _compare(Path(store), original, metrics, target, found, tolerance, kept=target)


def _metrics(store: Path, original: RunRecord) -> list[dict[str, Any]]:
    if original.status == "running":
        raise StoreError(f"run {original.run_id} is still being trained; wait until it is done")
    metrics = read_metrics(store, original.run_id)
    if not metrics:
        raise StoreError(f"run {original.run_id} ({original.status}) recorded nothing to compare with")
    return metrics


def _spec(original: RunRecord, device: str | None, plugins: Sequence[str]) -> RunSpec:
    """The stored spec, valid, with its plugins where they are now, on the device asked for or the same kind as then.

    Raises SpecError.
    """
    values = dict(original.spec)
    stored, engine = needed_plugins(values) or [], values.get("engine") or {}
    values["plugins"] = _found(original, list(map(str, stored)), plugins) if isinstance(stored, list) else stored
    recorded = str(original.environment.get("device") or "").partition(":")[0]
    if isinstance(engine, Mapping):  # of another kind it is refused below
        if device is not None:
            engine = {**engine, "device": device}
        elif engine.get("device", "auto") == "auto" and recorded not in ("", default_device().type):
            engine = {**engine, "device": recorded}
    values["engine"] = engine
    data = values.get("data")
    tokenizer = str(data.get("tokenizer")) if isinstance(data, Mapping) else ""
    try:
        is_there = expanded(tokenizer, SpecError).is_file()  # where others' model lies now, its tokenizer does, too
        return validate(with_foreign_model(values, lambda path: path != "data.tokenizer" or is_there))
    except SpecError as error:
        raise SpecError(
            f"run {original.run_id} of dsabench {original.version} cannot be trained by this one: {error}"
        ) from error


def _execution(original: RunRecord, spec: RunSpec, asked: str | None) -> Execution:
    """The spec's. Raises DeviceError when the device is not here, with what the run was trained on."""
    try:
        return resolve(spec.engine)
    except DeviceError as error:
        if asked is not None:
            raise
        then = original.environment.get("device_name") or "another machine"
        raise DeviceError(f"{error}. Run {original.run_id} was trained on {then}; --device takes another") from error


def _found(original: RunRecord, stored: Sequence[str], given: Sequence[str]) -> list[str]:
    elsewhere = {Path(path).name: path for path in given}
    if strange := [path for name, path in elsewhere.items() if name not in {Path(path).name for path in stored}]:
        named = ", ".join(Path(path).name for path in stored) or "none"
        raise SpecError(f"--plugin {strange[0]}: run {original.run_id} has none of that name; its plugins: {named}")
    found = [elsewhere.get(Path(path).name, path) for path in stored]
    for path in found:
        if not expanded(path, SpecError).is_file():
            raise SpecError(
                f"run {original.run_id} was trained with the plugin {path}, which is not there; "
                f"--plugin FILE says where {Path(path).name} lies now"
            )
    return found


def _same_files(original: RunRecord, survey: Survey, spec: RunSpec) -> None:
    """Raises DataError when corpus, tokenizer or plugin are not those of the run."""
    now = fingerprint(spec, survey.fingerprint, None)
    where = {"corpus": spec.data.source, "tokenizer": spec.data.tokenizer, "plugin": ", ".join(spec.plugins)}
    for name, digest in original.fingerprint.items():
        if name in now and now[name] != digest:
            raise DataError(
                f"the {name} is not what run {original.run_id} was trained with: {where.get(name) or name} has the "
                f"digest {now[name][:12]} now, and had {digest[:12]} then. With the old content it can be reproduced"
                + _other_versions(original.environment.get(TEXT_VERSIONS), survey.versions)
            )


def _other_versions(then: Any, now: Mapping[str, str]) -> str:
    """`: scipy 1.17.1, not 1.18.0`: of the distributions that a text is of, those that were others."""
    if not isinstance(then, Mapping):
        return ""
    found = [f"{c.field} {c.a or 'none'}, not {c.b or 'none'}" for c in changes(dict(then), dict(now))]
    return f": {'; '.join(found)}" if found else ""


def _trained_again(
    spec: RunSpec,
    execution: Execution,
    original: RunRecord,
    source: Path,
    store: Path,
    observe: Callable[[RunSpec], Callable[[Any], None]],
    notify: Callable[[str], None],
) -> RunRecord:
    """Train the run of the store `source` again in `store`, after its parent, if it has one."""
    here = original.model_copy(update={"environment": environment(execution), "version": __version__, "summary": {}})
    found = reasons(original, here)
    if others := ", ".join(f"{c.field} {text(c.a)} -> {text(c.b)}" for c in found):
        notify("; ".join([f"the environment is not the run's: {others}", *remedies(found)]))
    place = Place(store, execution, Slots(), notify)
    origin = None
    if (parent := parent_spec(spec)) is not None:
        _parent_again(parent, place, original)
    elif spec.start is not None:
        origin = origin_of(spec, source, original.fingerprint, notify)
    job = RunJob(spec, retry_failed=True, origin=origin)
    return to_the_end(train_by_turns(job, place, observe(spec)))


def _parent_again(parent: RunSpec, place: Place, child: RunRecord) -> None:
    """Train the parent of a run again, where the second run will look for it, and say whether its weights are the same.

    Raises StoreError where it fails.
    """
    record = to_the_end(train_by_turns(RunJob(parent, retry_failed=True), place, unobserved))
    if record.status != "done":
        raise StoreError(without_parent(record, 1))
    then = child.environment.get("start")
    known = then.get("weights") if isinstance(then, Mapping) else None
    sealed = ((record.seal.files if record.seal else None) or {}).get(f"checkpoint/{WEIGHTS}")
    same = "the same weights" if sealed is not None and sealed.digest == known else "other weights"
    place.notify(f"its parent {record.run_id} was trained again: {same} as then")


def _compare(
    store: Path,
    original: RunRecord,
    metrics: Sequence[Mapping[str, Any]],
    target: Path,
    again: RunRecord,
    tolerance: float | None,
    *,
    kept: Path | None,
) -> Reproduction:
    whole = original.status != "interrupted"
    ours, theirs = list(metrics), read_metrics(target, again.run_id)
    if original.status == "done":  # else it has no summary
        ours.append(summary_record(original.summary))
        theirs += [summary_record(again.summary)] if again.status == "done" else []
    records = compare_records(ours, theirs, whole=whole)
    first, second = find_checkpoint(store, original.run_id), find_checkpoint(target, again.run_id)
    weights = None
    if first is not None and second is not None and steps_done(first) == steps_done(second):
        weights = compare_weights(first, second)
    return Reproduction(original, again, records, weights, tolerance, kept)
