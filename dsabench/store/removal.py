"""Removal of runs: all of them or none as far as can be known before, and at every moment a run is whole or gone.

Under the run's lock its folder gets a name that no reader looks at; only then are its files deleted. Files that a kill
leaves behind are deleted with the next run that is removed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Sequence
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

LISTED = 20
"""Runs that a message lists by name."""


def check_removable(store: str | Path, run_ids: Iterable[str]) -> list[Path]:
    """The folders of these runs, each once, after all that can be known without removing anything was looked at.

    Raises:
        RunBusyError: a process is writing one of them.
        StoreError: one is not there, or may not be removed.
    """
    path = existing_store(store)
    there = set(run_names(path))
    folders = [run_folder(path, name) for name in dict.fromkeys(run_ids)]
    if missing := [folder for folder in folders if folder.name not in there]:
        raise StoreError(f"{missing[0]}: there is no such run{_more(missing)}; nothing was removed")
    if busy := [folder for folder in folders if is_held(folder / LOCK)]:
        raise RunBusyError(
            f"run {busy[0].name}{_more(busy)}: another process is writing it; nothing was removed (wait for it, or "
            "end it)"
        )
    if folders and not _may_change(path):
        raise StoreError(f"{path}: you may not change this folder; nothing was removed (its owner can)")
    if kept := [(folder, why) for folder in folders if (why := _obstacle(path, folder))]:
        raise StoreError(f"run {kept[0][0].name}{_more(kept)}: {kept[0][1]}; nothing was removed")
    return folders


def remove_runs(store: str | Path, run_ids: Iterable[str]) -> list[str]:
    """Remove these runs from the store and its index. Returns a phrase for each that was removed.

    Nothing outside the store is touched: of a run whose folder is a link, the link is removed.

    Raises:
        RunBusyError: a process is writing one of them. When that shows at once, nothing was removed.
        StoreError: one is not there, or may not be removed; nothing was. Or it could not be after all: the message says
            which were removed, and which were not.
    """
    folders = check_removable(store, run_ids)
    removed: list[str] = []
    failure: StoreError | None = None
    for folder in folders:
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
        left = [folder.name for folder in folders if os.path.lexists(folder)]
        gone = [folder.name for folder in folders if folder.name not in left]
        said = [f"{what}: {_listed(names)}" for what, names in (("removed", gone), ("not removed", left)) if names]
        raise type(failure)(f"{failure} ({'; '.join(said)})") from failure
    return removed


def _obstacle(store: Path, folder: Path) -> str | None:
    """Why a run may not be removed, as far as that can be known before; None for no reason. Follows no link."""
    owner = folder.lstat().st_uid
    sticky = store.stat().st_mode & stat.S_ISVTX and hasattr(os, "geteuid")
    if sticky and os.geteuid() not in (0, owner, store.stat().st_uid):
        return f"it belongs to another user (id {owner}), and only its owner may remove it from this store"
    if folder.is_symlink():
        return None  # the link alone is removed
    lock = folder / LOCK
    if lock.is_symlink():
        return f"{lock} is a link, and no process can say by it that it writes the run; remove the link first"
    if lock.exists() and not os.access(lock, os.R_OK | os.W_OK):
        return f"you may not open {lock}"
    for here, inner, _ in os.walk(folder):
        inner[:] = [name for name in inner if not Path(here, name).is_symlink()]
        if not _may_change(Path(here)):
            return f"you may not change the folder {here}"
        if shut := [name for name in inner if not os.access(Path(here, name), os.R_OK | os.X_OK)]:
            return f"you may not change the folder {Path(here, shut[0])}"
    return None


def _may_change(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def _more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


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
        raise RunBusyError(f"run {folder.name}: another process is writing it")
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
