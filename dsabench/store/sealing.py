"""The sealing of runs that versions before 0.3 stored, after the checks that can be made without a seal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from dsabench.errors import StoreError
from dsabench.store import atomic_folder, seals
from dsabench.store.files import acquire, explained, read_regular, write_atomic
from dsabench.store.layout import LOCK, METRICS, RECORD, existing_store, run_folder
from dsabench.store.reader import parse_metrics, read_raw
from dsabench.store.records import DamagedError, RunBusyError, read_document
from dsabench.store.verification import damage

_PATIENCE_S = 1.0


def seal_run(store: str | Path, run_id: str) -> Literal["sealed", "was sealed"]:
    """Seal a run as its writer would have: record, metrics and checkpoint; one that has a seal is compared with it.

    Nothing but the seal is added to its record. A kill leaves the run as it was, or sealed.

    Raises:
        DamagedError: it is not what was written, or contradicts itself; it stays as it is.
        RunBusyError: a process is writing it.
        StoreError: there is no such run, or it cannot be read or written.
    """
    folder = run_folder(existing_store(store), run_id)
    if not folder.is_dir():
        raise StoreError(f"{folder}: there is no such run")
    lock = acquire(folder / LOCK, _PATIENCE_S)
    if lock is None:
        raise RunBusyError(f"run {run_id}: a process is writing it, and seals it at its end")
    try:
        record = read_raw(folder)
        if record is None:
            raise StoreError(f"run {run_id}: it was cut off before it began, and there is nothing to seal")
        if wrong := damage(folder, record, weights=True):
            raise DamagedError(f"run {run_id}: {'; '.join(wrong)}", record)
        if record.seal is not None:
            return "was sealed"
        with explained(folder):
            saved = atomic_folder.whole(folder)
            if saved is not None:
                _seal_checkpoint(saved, folder / METRICS)
            # As it is stored, not as this version reads it: what an earlier one did not know is not added.
            document = read_document(folder / RECORD)
            files = None if record.status == "running" else _files(folder, saved)  # a run that was killed has no end
            document["seal"] = {"digest": "", "files": files}
            document["seal"]["digest"] = seals.record_digest(document)
            write_atomic(folder / RECORD, (json.dumps(document, indent=1) + "\n").encode())
        return "sealed"
    finally:
        lock.release()


def _files(folder: Path, saved: Path | None) -> dict[str, Any]:
    paths = {METRICS: folder / METRICS}
    if saved is not None:
        paths |= {f"checkpoint/{path.name}": path for path in sorted(saved.iterdir())}
    return {name: seals.file_seal(path).model_dump() for name, path in paths.items() if path.is_file()}


def _seal_checkpoint(saved: Path, metrics: Path) -> None:
    """Seal a checkpoint from which a run may resume, with the metrics up to its step; StoreError when it names none."""
    if (saved / seals.CHECKPOINT_SEAL).exists():
        return
    try:
        step = json.loads(read_regular(saved / "state.json"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # of a foreign make: nobody resumes from it
    records, _ = parse_metrics(metrics)
    lines = metrics.read_bytes().splitlines(keepends=True) if records else []
    past = 0
    for record, line in zip(records, lines, strict=False):
        if record["step"] > step:
            break
        past += len(line)
    before = seals.file_seal(metrics, past) if metrics.exists() else seals.FileSeal(size=0, digest=seals.digest_of(b""))
    seals.seal_checkpoint(saved, before)
