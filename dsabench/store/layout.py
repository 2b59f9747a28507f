"""The layout of a store: its files and folders, and the test whether a folder is, or can become, a store."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dsabench.errors import StoreError
from dsabench.store.files import acquire, explained, write_atomic
from dsabench.store.record_files import read_document
from dsabench.store.records import SCHEMA_VERSION, check_id

RECORD = "run.json"
METRICS = "metrics.jsonl"
LOG = "log.txt"
LOCK = ".lock"
SWEEPS = "sweeps"
_MARK = "store.json"
_TOP_LOCK = ".index.lock"


def run_folder(store: Path, run_id: str) -> Path:
    """The folder of a run, which need not exist.

    Raises:
        StoreError: `run_id` is no id, so it could name something outside the store.
    """
    return store / check_id(run_id)


def check_schema(store: Path) -> bool:
    """Whether `store` holds the mark of a store.

    Raises:
        StoreError: a newer dsabench wrote it, or the mark is damaged.
    """
    try:
        read_document(store / _MARK)
    except FileNotFoundError:
        return False
    return True


def existing_store(store: str | Path) -> Path:
    """`store` as a path, when there is a store to read.

    Raises:
        StoreError: there is no such folder, or a newer dsabench wrote it.
    """
    path = Path(store)
    with explained(path):
        if not path.exists():
            raise StoreError(f"{path}: no run store there; make runs first (dsabench sweep), or name another (--store)")
        if not path.is_dir():
            raise StoreError(f"{path}: a file, not a run store; name a folder (--store DIR)")
    check_schema(path)
    return path


@contextmanager
def locked(store: Path, timeout_s: float = 120) -> Iterator[None]:
    """Hold the lock of the files that belong to no single run: the mark, the sweeps and the index.

    Raises:
        StoreError: another process keeps it.
    """
    lock = acquire(store / _TOP_LOCK, timeout_s)
    if lock is None:
        raise StoreError(f"{store}: another process has held {store / _TOP_LOCK} for {timeout_s:g} s; end it")
    try:
        yield
    finally:
        lock.release()


def make_store(store: Path) -> None:
    """Make `store` a store that can be written: its folder and `store.json`.

    Raises:
        StoreError: as `check_writable`.
    """
    check_writable(store)
    if not check_schema(store):
        with explained(store):
            store.mkdir(parents=True, exist_ok=True)
        with locked(store):
            write_atomic(store / _MARK, json.dumps({"schema_version": SCHEMA_VERSION}).encode())


def check_writable(store: Path, option: str = "--store") -> None:
    """Refuse, before any work is done, a place where runs cannot be kept; leaves everything as it was.

    option: the one by which a user names the place.

    Raises:
        StoreError: a file is in the way, the folder cannot be made or written, or a newer dsabench wrote the
            store.
    """
    for path in (store, *store.absolute().parents):
        with explained(path, option):
            if path.exists() and not path.is_dir():
                raise StoreError(f"{path}: a file is in the way; the store needs a folder ({option} DIR)")
    check_schema(store)
    for attempt in range(3):
        try:
            with explained(store, option):
                _try_writing(store.absolute())
            return
        except StoreError as error:
            # Another process that checks the same missing store may take its folder away under us.
            if not isinstance(error.__cause__, FileNotFoundError) or attempt == 2:
                raise


def _try_writing(store: Path) -> None:
    missing = [path for path in (store, *store.parents) if not path.exists()]
    made: list[Path] = []
    try:
        for path in reversed(missing):
            with suppress(FileExistsError):  # another process made it
                path.mkdir()
                made.append(path)
        with tempfile.TemporaryFile(dir=store) as probe:  # without a name: a kill leaves nothing
            os.write(probe.fileno(), b"x")  # a full disk may still give names
    finally:
        for path in reversed(made):
            with suppress(OSError):  # not empty: another process uses it by now
                path.rmdir()
