"""Removal of runs: at every moment a run is whole or gone.

Under the run's lock its folder gets a name that no reader looks at; only then are its files deleted. Files that a kill
leaves behind are deleted with the next run that is removed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from dsabench.errors import StoreError
from dsabench.store import index
from dsabench.store.files import acquire, explained, is_held, sync_folder
from dsabench.store.layout import LOCK, existing_store, run_folder
from dsabench.store.reader import run_names
from dsabench.store.records import RunBusyError
from dsabench.store.sweep_records import readable_sweeps

GONE = ".removed."
"""Beginning of the name of a removed run's folder, until its files are deleted."""

_PATIENCE_S = 1.0


def check_removable(store: str | Path, run_ids: Iterable[str]) -> list[Path]:
    """The folders of these runs, each once.

    Raises:
        RunBusyError: a process is writing one of them.
        StoreError: one is not there.
    """
    path = existing_store(store)
    there = set(run_names(path))
    folders = [run_folder(path, name) for name in dict.fromkeys(run_ids)]
    if missing := [folder for folder in folders if folder.name not in there]:
        raise StoreError(f"{missing[0]}: there is no such run; nothing was removed")
    if busy := [folder.name for folder in folders if is_held(folder / LOCK)]:
        more = f" (and {len(busy) - 1} more)" if len(busy) > 1 else ""
        raise RunBusyError(
            f"run {busy[0]}{more}: another process is writing it; nothing was removed (wait for it, or end it)"
        )
    return folders


def remove_runs(store: str | Path, run_ids: Iterable[str]) -> list[str]:
    """Remove these runs from the store and its index. Returns a phrase for each that was removed.

    Nothing outside the store is touched: of a run whose folder is a link, the link is removed.

    Raises:
        RunBusyError: a process is writing one of them. When that shows at once, nothing was removed.
        StoreError: one is not there, or its folder cannot be removed. The message says which were removed before it.
    """
    removed: list[str] = []
    failure: StoreError | None = None
    for folder in check_removable(store, run_ids):
        try:
            removed.append(_remove(folder))
        except StoreError as error:
            failure = error
            break
    try:
        _delete_leftovers(Path(store))
        index.update_now(Path(store))
    except StoreError as error:
        failure = failure or error
    if failure is not None:
        before = f" (removed before that: {', '.join(removed)})" if removed else ""
        raise type(failure)(f"{failure}{before}") from failure
    return removed


def sweeps_naming(store: str | Path, run_ids: Iterable[str]) -> dict[str, int]:
    """{id of a sweep: how many of these runs its record names}, for those that name any."""
    names = set(run_ids)
    counts = {record.id: len(names.intersection(record.run_ids)) for record in readable_sweeps(store)[0]}
    return {name: count for name, count in counts.items() if count}


def _remove(folder: Path) -> str:
    if folder.is_symlink():
        with explained(folder):
            target = os.readlink(folder)  # noqa: PTH115 (as written)
            folder.unlink()
            sync_folder(folder.parent)
        return f"{folder.name} (a link; {target} is as it was)"
    lock = acquire(folder / LOCK, _PATIENCE_S)
    if lock is None:
        raise RunBusyError(f"run {folder.name}: another process is writing it; it was not removed")
    gone = folder.with_name(f"{GONE}{folder.name}.{secrets.token_hex(4)}")
    try:
        if sys.platform == "win32":  # which renames no folder with an open file in it
            lock.release()
        with explained(folder):
            os.rename(folder, gone)  # noqa: PTH104 (one name for tests to break)
            sync_folder(folder.parent)
        # Still under the lock: a process that waits for it finds the lock's file deleted, and none or a new one there.
        shutil.rmtree(gone, ignore_errors=True)
    finally:
        lock.release()
    if gone.exists():
        raise StoreError(f"run {folder.name} is removed, but not all of its files could be deleted: {gone}")
    return folder.name


def _delete_leftovers(store: Path) -> None:
    """Delete what a kill left of runs that were removed before."""
    for left in store.glob(f"{GONE}*"):
        shutil.rmtree(left, ignore_errors=True)
