"""The writer of one run, its only one for as long as it is open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from filelock import FileLock

from dsabench.errors import DsabenchError, StoreError
from dsabench.plain import encodable
from dsabench.store import atomic_folder, index, seals
from dsabench.store.files import acquire, explained, refuse_links, write_atomic
from dsabench.store.layout import LOCK, LOG, METRICS, RECORD, make_store, run_folder
from dsabench.store.metrics_file import MetricsFile, cut
from dsabench.store.order import next_order
from dsabench.store.reader import parse_metrics, read_raw
from dsabench.store.records import RunBusyError, RunDoneError, RunRecord, Scalar, now
from dsabench.store.seals import FileSeal

_PATIENCE_S = 1.0
"""How long to wait for a run's lock: a reader that looks at it holds it for some microseconds."""


class RunWriter:
    """The one writer of `<store>/<run_id>/`; a context manager, made by `RunWriter.open`.

    When the block ends without `finish`, the run is recorded as `failed` with the exception that ended it, or as
    `interrupted`: after a KeyboardInterrupt, after a DsabenchError (such as a full disk, which is no fault of the run),
    or without an exception. A kill leaves `running`, which readers show as `interrupted`.
    """

    def __init__(
        self,
        path: Path,
        record: RunRecord,
        lock: FileLock,
        tell: Callable[[str], None],
        before: Mapping[str, FileSeal],
    ) -> None:
        self.path = path
        """The run's folder."""
        self.record = record
        """The run's record as it is stored."""
        self._lock = lock
        self._tell = tell
        self._metrics = MetricsFile(path / METRICS)
        self._before = before
        """Seals of the checkpoint's files in the record of the run's end before."""
        self._past: int | None = None
        """Bytes of metrics.jsonl that the checkpoint which `checkpoint` gave has behind it, by its seal."""

    @classmethod
    def open(
        cls,
        store: str | Path,
        run_id: str,
        *,
        spec: Mapping[str, Any],
        fingerprint: Mapping[str, str],
        environment: Mapping[str, Any],
        sweep: str | None = None,
        tell: Callable[[str], None] = lambda message: None,
    ) -> Self:
        """Begin run `run_id`, or take it up again where a failed or killed process left it; status `running`.

        `created` (and `sweep`, when None is given) stay as they were. Metrics and checkpoint that are there stay, too:
        call `rewind` with the checkpoint's step, or with -1 when `checkpoint()` is None. Makes the store when needed.
        `tell` is given a line for the user where a damaged checkpoint is passed over.

        Raises:
            RunBusyError: another process, or another writer in this one, has the run open.
            RunDoneError: it is done already.
            StoreError: the store cannot be written, or the run's files are damaged or of a newer dsabench. A run that
                did not exist before still does not.
        """
        path = run_folder(Path(store), run_id)
        make_store(Path(store))
        refuse_links(path, path / METRICS)
        with explained(path):
            path.mkdir(exist_ok=True)
        lock = acquire(path / LOCK, _PATIENCE_S)
        if lock is None:
            raise RunBusyError(
                f"run {run_id}: another process is writing it (it holds {path / LOCK}); wait for it or end it"
            )
        is_new = False
        try:
            before = read_raw(path)
            # Seen under the lock: another writer may have begun and finished the run since mkdir.
            is_new = [found.name for found in path.iterdir()] == [LOCK]
            if before is not None and before.status == "done":
                raise RunDoneError(f"run {run_id}: done already; remove {path} to run it again", before)
            record = RunRecord(
                run_id=run_id,
                status="running",
                spec=dict(spec),
                fingerprint=dict(fingerprint),
                environment=dict(environment),
                sweep=sweep or (before.sweep if before else None),
                order=next_order(path.parent),
                **({"created": before.created} if before else {}),
            ).sealed()
            with explained(path):
                atomic_folder.recover(path)
                for leftover in (*path.glob(".*.tmp"), path / LOG):  # the log of a failure before
                    leftover.unlink(missing_ok=True)
            whole = parse_metrics(path / METRICS)[1]  # or raises, while the record is still what it was
            write_atomic(path / RECORD, record.to_json())
            # Only now: the record before may have sealed the torn line as well.
            cut(path / METRICS, whole)
        except BaseException:
            if is_new:
                shutil.rmtree(path, ignore_errors=True)
            lock.release()
            raise
        return cls(path, record, lock, tell, before.seal.of_checkpoint() if before is not None and before.seal else {})

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Append one record, {"kind": str, "step": int, ...}, in one write; NaN and infinities stay.

        Raises:
            StoreError: it cannot be written (the disk is full); the file then ends in the record before.
        """
        if not isinstance(record.get("kind"), str) or type(record.get("step")) is not int:
            raise TypeError(f"a metrics record needs a `kind` (str) and a `step` (int), not {dict(record)!r}")
        if "run_id" in record:
            raise TypeError("a metrics record cannot have a `run_id`; `load_metrics` adds it")
        self._check_open()
        self._metrics.append((json.dumps(dict(record)) + "\n").encode("ascii"))

    def rewind(self, step: int) -> None:
        """Drop the metrics records after `step` (the checkpoint's; -1 drops all), and a torn last line.

        Dropped is also what was recorded after the checkpoint that `checkpoint` gave, whatever step it names.

        Raises:
            StoreError: a line is damaged, or the file cannot be written.
        """
        self._check_open()
        self._metrics.rewind(step, self._past)

    def replace_checkpoint(self, write: Callable[[Path], None]) -> None:
        """Call `write(empty_folder)` and make what it wrote, sealed, the run's checkpoint, atomically.

        The metrics so far are made durable first. The checkpoint before is kept until the next one, or the run's end.

        Raises:
            StoreError: it cannot be written (the disk is full); the checkpoint before is still there. Other exceptions
                of `write` pass.
        """
        self._check_open()
        # A checkpoint whose past was lost in a power failure would leave a hole in the curve.
        self._metrics.sync()
        self._past = None

        def sealed(folder: Path) -> None:
            write(folder)
            # It may come with a seal, from the machine that trained it.
            if problems := seals.checkpoint_problems(folder):
                raise StoreError(f"run {self.record.run_id}: a checkpoint arrived damaged ({problems[0]})")
            (folder / seals.CHECKPOINT_SEAL).unlink(missing_ok=True)
            (folder / seals.CHECKPOINT_SEAL).write_bytes(seals.seal_for_checkpoint(folder, self._metrics.seal()))

        atomic_folder.replace(self.path, sealed)

    def checkpoint(self) -> Path | None:
        """The folder of the last checkpoint that is what was written, or None. Reads every byte of it.

        A damaged one is passed over for the one before; the user is told, and it is removed once there is another.
        """
        wrong = []
        for path in atomic_folder.candidates(self.path):
            sealed = self._sealed_past(path)
            if isinstance(sealed, str):
                wrong.append(sealed)
                continue
            self._past = sealed
            if not wrong:
                return path
            self._check_open()
            self._tell(f"run {self.record.run_id}: {wrong[0]}; it resumes from the checkpoint before")
            return atomic_folder.go_back(self.path)
        if wrong:
            self._tell(f"run {self.record.run_id}: {wrong[0]}; it begins anew")
        return None

    def _sealed_past(self, folder: Path) -> int | str | None:
        """Bytes of metrics before a checkpoint, None without a seal; or what is wrong with it."""
        problems = seals.checkpoint_problems(folder)
        seal = None if problems else seals.checkpoint_seal(folder)
        if seal is None and not problems and folder.name == "checkpoint":  # of an earlier version
            problems = seals.differing(self.path, self._before)
        if problems:
            return f"its checkpoint is damaged ({problems[0]})"
        if seal is None:  # only the last one can be told to be whole
            return None if folder.name == "checkpoint" else f"its checkpoint {folder.name} has no seal"
        with explained(self.path / METRICS):
            return seals.past_problem(folder, self.path / METRICS) or seal.metrics.size

    def finish(
        self,
        status: Literal["done", "failed", "interrupted"],
        summary: Mapping[str, Scalar] | None = None,
        error: str | None = None,
        log: str | None = None,
        environment: Mapping[str, Any] | None = None,
        indexed: bool = True,
    ) -> RunRecord:
        """Record how the run ended, durably, and bring the index up to date. Call it once, last.

        log: more about a failure, such as its traceback; kept in the run's folder. environment: that of the machine
        that trained the run, if it was not known at the beginning. indexed = False leaves the index to the caller, who
        updates it for several runs at once (`index.update`).

        Raises:
            StoreError: the record, or after it the index, cannot be written.
        """
        self._check_open()
        self._metrics.sync()
        if status == "done":
            atomic_folder.forget_previous(self.path)
        with explained(self.path):
            files = self._sealed_files()
        record = RunRecord.model_validate(
            {
                **self.record.model_dump(),
                "seal": {"digest": "", "files": files},
                "status": status,
                "summary": dict(summary or {}),
                # File names may hold bytes that are no text, and so may messages about them.
                "error": None if error is None else encodable(error),
                "updated": now(),
                "order": next_order(self.path.parent),
                **({} if environment is None else {"environment": dict(environment)}),
            }
        ).sealed()
        if log is not None:
            with suppress(StoreError):  # the record counts
                write_atomic(self.path / LOG, encodable(log).encode())
        write_atomic(self.path / RECORD, record.to_json())
        self.record = record
        self._metrics.close()
        if indexed:
            index.update(self.path.parent)
        return record

    def _sealed_files(self) -> dict[str, Any]:
        """The seals of the run's files: metrics.jsonl, and what its checkpoint holds. Raises OSError."""
        recorded = self._metrics.sealed_end()
        files = {} if recorded is None else {METRICS: recorded}
        folder = atomic_folder.whole(self.path)
        if folder is not None:
            told: dict[str, FileSeal] = {}
            with suppress(StoreError):  # its seal is damaged: named when it is read
                told |= seal.files if (seal := seals.checkpoint_seal(folder)) else {}
            rest = [path for path in folder.iterdir() if path.name not in told]  # weights are not read a second time
            told |= {path.name: seals.file_seal(path) for path in rest}
            files |= {f"checkpoint/{name}": told[name] for name in sorted(told)}
        return {name: its.model_dump() for name, its in files.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.record.status == "running":
                self._record_end(error)
        finally:
            self._metrics.close()
            self._lock.release()

    def _record_end(self, error: BaseException | None) -> None:
        """Finish a run that nobody finished; a failure to do so becomes a note of `error`, if there is one."""
        try:
            if isinstance(error, Exception) and not isinstance(error, DsabenchError):
                self.finish("failed", error=f"{type(error).__name__}: {error}")
            else:
                self.finish("interrupted")
        except StoreError as failure:
            if error is None:
                raise
            error.add_note(f"the end of run {self.record.run_id} could not be recorded: {failure}")

    def _check_open(self) -> None:
        if self.record.status != "running" or not self._lock.is_locked:
            raise RuntimeError(f"run {self.record.run_id} is {self.record.status} and its writer is closed")
