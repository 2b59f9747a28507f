"""Atomic replacement of a folder of files: a kill at any moment leaves a whole one.

A folder cannot be renamed over another, so the swap takes two renames. The names: `checkpoint` is whole whenever it
exists; `checkpoint.new` is being written and never trusted; `checkpoint.old` is the one before, kept until the run is
done, in case a byte of `checkpoint` goes bad. `checkpoint.old` is whole whenever `checkpoint` is missing, because it is
deleted only while `checkpoint` exists; beside it, its seal says whether it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from dsabench.store.files import explained, sync_folder, sync_tree


def recover(folder: Path) -> None:
    """Bring the checkpoint in `folder` back to one name after a kill; needs the run's lock."""
    current, old, new = _names(folder)
    if old.exists() and not current.exists():
        os.rename(old, current)  # noqa: PTH104 (one name for tests to break)
        sync_folder(folder)
    if new.exists():
        shutil.rmtree(new)


def go_back(folder: Path) -> Path:
    """Make the checkpoint before the last one, which is there, the checkpoint, and return it; needs the run's lock.

    Raises:
        StoreError: as `replace`.
    """
    current, old, new = _names(folder)
    with explained(current):
        if new.exists():
            shutil.rmtree(new)
        # Renamed before it is deleted: half of it, without its seal, could be taken for one of an earlier version.
        os.rename(current, new)  # noqa: PTH104
        os.rename(old, current)  # noqa: PTH104
        sync_folder(folder)
        shutil.rmtree(new)
    return current


def forget_previous(folder: Path) -> None:
    """Delete the checkpoint before the last one, as far as it can be; needs the run's lock."""
    current, old, _ = _names(folder)
    if current.exists():
        shutil.rmtree(old, ignore_errors=True)


def replace(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write(empty_folder)` and make what it wrote the checkpoint in `folder`; needs the run's lock.

    When it raises, the checkpoint is still the last whole one (after `recover`).

    Raises:
        StoreError: an OSError, the disk being full among them, in `write` or around it.
    """
    current, old, new = _names(folder)
    with explained(current):
        recover(folder)
        if old.exists():
            shutil.rmtree(old)
        new.mkdir()
        try:
            write(new)
            sync_tree(new)  # before any rename: a name must never come to stand for missing bytes
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)  # half a checkpoint would keep a full disk full
            raise
        if current.exists():
            os.rename(current, old)  # noqa: PTH104
        os.rename(new, current)  # noqa: PTH104
        sync_folder(folder)


def candidates(folder: Path) -> list[Path]:
    """The checkpoints in a run's `folder`, the last one first: those that are no empty folders. Changes nothing.

    The first is whole; the second, if there is one, is if its seal says so.
    """
    current, old, _ = _names(folder)
    return [path for path in (current, old) if path.is_dir() and any(path.iterdir())]


def whole(folder: Path) -> Path | None:
    """The last whole checkpoint in a run's `folder`, or None; its bytes are not looked at."""
    return next(iter(candidates(folder)), None)


def _names(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "checkpoint", folder / "checkpoint.old", folder / "checkpoint.new"
