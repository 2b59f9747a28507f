"""The verification of stored runs: whether what is read is what was written, and whether its parts agree."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsabench.errors import SpecError, StoreError
from dsabench.spec.identity import run_id
from dsabench.spec.stored_spec import needed_plugins, stored_spec
from dsabench.store import atomic_folder, seals
from dsabench.store.files import read_regular
from dsabench.store.layout import METRICS
from dsabench.store.reader import parse_metrics
from dsabench.store.records import DamagedError, RunRecord

TOLERANCE = 1e-4
"""By how much of itself a number of the summary may be off from the last evaluation's. A run that is killed after its
last checkpoint evaluates once more for its summary, and on a GPU the last digits of that may be others."""

_IDENTITY = re.compile(r".+-L\d+-s\d+-[0-9a-f]{8}")


def damage(folder: Path, record: RunRecord, weights: bool = False) -> list[str]:
    """What is wrong with a run whose record could be read, one phrase each; none: nothing was found.

    Compared are, as far as a run has them: metrics.jsonl with its digest, the summary with the last evaluation, the
    last records of a done run with its steps, and of a record without a seal the id with spec and content digests.
    weights: all of that, and every file of the checkpoint with its digest. Executes no plugin: the id of a run of a
    plugin is not looked at.
    """
    found = _of_metrics(folder, record) if record.status != "running" else []
    if weights or record.seal is None:  # a sealed spec is the one that the id was made of
        found += _of_identity(record)
    if weights:
        found += checkpoint_damage(folder, record)
    return found


def checkpoint_damage(folder: Path, record: RunRecord) -> list[str]:
    """What is wrong with the last checkpoint in a run's folder; none also where the checkpoint was removed."""
    saved = atomic_folder.whole(folder)
    if saved is None:
        return []
    files = (record.seal.files if record.seal else None) or {}
    sealed = {name: its for name, its in files.items() if name.startswith("checkpoint/")}
    return seals.checkpoint_problems(saved, sealed if saved.name == "checkpoint" else None)


def sound_checkpoint(folder: Path, record: RunRecord, tell: Callable[[str], None]) -> Path | None:
    """The last checkpoint in a run's folder that is what was written, or None where none is there. Reads all of it.

    Of a run that has not ended, a damaged one is passed over for the one before, and `tell` is given a line about it.

    Raises:
        DamagedError: what is there is damaged.
    """
    files = (record.seal.files if record.seal else None) or {}
    sealed = {name: its for name, its in files.items() if name.startswith("checkpoint/")}
    wrong: list[str] = []
    for path in atomic_folder.candidates(folder):
        is_last = path.name == "checkpoint"
        if is_last or seals.is_sealed(path):
            problems = seals.checkpoint_problems(path, sealed if is_last else None)
            if not problems:
                if wrong:
                    tell(f"run {record.run_id}: its checkpoint is damaged ({wrong[0]}); taken is the one before")
                return path
            wrong += problems
    if wrong:
        raise DamagedError(
            f"run {record.run_id}: its checkpoint is damaged ({wrong[0]}); dsabench runs verify says what to do", record
        )
    return None


def _of_metrics(folder: Path, record: RunRecord) -> list[str]:
    sealed = record.seal.files if record.seal else None
    if sealed is not None:
        told = sealed.get(METRICS)
        if told is not None and (differs := seals.differing(folder, {METRICS: told})):
            return differs
        if told is None and (folder / METRICS).exists():
            return [f"{METRICS} was not there when the run ended"]
    elif record.seal is not None and (saved := atomic_folder.whole(folder)) is not None:  # it was killed
        try:
            problem = seals.past_problem(saved, folder / METRICS)
        except OSError as error:
            problem = f"{METRICS} cannot be read: {error.strerror or error}"
        return [problem] if problem else []
    return _disagreements(folder, record, sealed is not None)


def _disagreements(folder: Path, record: RunRecord, is_sealed: bool) -> list[str]:
    """Where the summary and metrics.jsonl of a done run contradict each other."""
    if record.status != "done":
        return []
    try:
        evaluation = _last_evaluation(read_regular(folder / METRICS))
    except FileNotFoundError:
        evaluation = None
    except OSError as error:
        return [f"{METRICS} cannot be read: {error.strerror or error}"]
    except StoreError as error:
        return [str(error)]
    if not is_sealed:  # of a sealed file every byte is known
        try:
            parse_metrics(folder / METRICS, lists=False)
        except StoreError as error:
            return [str(error)]
    if evaluation is None:
        losses = "val_loss" in record.summary and not is_sealed  # a run of training records alone may be sealed
        return [f"{METRICS} ends without an evaluation, and the run is done"] if losses else []
    found = []
    steps = record.summary.get("steps")
    if steps is not None and evaluation.get("step") != steps:
        found.append(f"{METRICS} ends at step {evaluation.get('step')}, and the summary says {steps} steps")
    for name, value in record.summary.items():
        if name in evaluation and name not in ("seconds", "flops") and not _agree(value, evaluation[name]):
            found.append(f"{name} is {value} in the summary and {evaluation[name]} in the last evaluation")
    return found


def _agree(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        try:
            both_nan = math.isnan(a) and math.isnan(b)
            return both_nan or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-9)
        except OverflowError:  # JSON knows whole numbers beyond every float
            return a == b
    return bool(a == b)


def _last_evaluation(data: bytes) -> Mapping[str, Any] | None:
    """The last evaluation's record, which must be the last record of all; None where there is no evaluation.

    Raises:
        StoreError: the end of the file is no record, or something was recorded after it.
    """
    *lines, tail = data.split(b"\n")
    if tail:
        raise StoreError(f"{METRICS} ends in half a record, and the run is done")
    try:
        last = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        raise StoreError(f"{METRICS} ends in what is no record") from None
    if isinstance(last, dict) and last.get("kind") == "eval":
        return last
    if any(line.startswith(b'{"kind": "eval"') for line in lines):
        raise StoreError(f"{METRICS} does not end in an evaluation, and the run is done")
    return None


def has_its_id(record: RunRecord) -> bool:
    """Whether the id of a run can be told to be that of its spec: not that of a plugin, which is not executed."""
    is_known = _IDENTITY.fullmatch(record.run_id) and not needed_plugins(record.spec)
    return bool(is_known) and not _of_identity(record)


def _of_identity(record: RunRecord) -> list[str]:
    try:
        if not _IDENTITY.fullmatch(record.run_id) or needed_plugins(record.spec):
            return []
        expected = run_id(stored_spec(record.spec, record.run_id), record.fingerprint)
    except SpecError:  # of another version, or of an attention that is not known here
        return []
    return [] if expected == record.run_id else [f"its spec and content digests give the id {expected}"]
