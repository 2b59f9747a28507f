"""Atomic replacement of a folder of files: a kill at any moment leaves a whole one.

A folder cannot be renamed over another, so the swap takes two renames. The names: `checkpoint` is whole whenever it
exists; `checkpoint.new` is being written and never trusted; `checkpoint.old` is the one before. `checkpoint.old` is
whole whenever `checkpoint` is missing, because it is deleted only while `checkpoint` exists.
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
    if old.exists():
        if current.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, current)  # noqa: PTH104 (one name for tests to break)
            sync_folder(folder)
    if new.exists():
        shutil.rmtree(new)


def replace(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write(empty_folder)` and make what it wrote the checkpoint in `folder`; needs the run's lock.

    When it raises, the checkpoint is still the last whole one (after `recover`).

    Raises:
        StoreError: an OSError, the disk being full among them, in `write` or around it.
    """
    current, old, new = _names(folder)
    with explained(current):
        recover(folder)
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
        if old.exists():
            shutil.rmtree(old)


def whole(folder: Path) -> Path | None:
    """The last whole checkpoint in a run's `folder`, or None. An empty folder is none. Changes nothing."""
    current, old, _ = _names(folder)
    return next((path for path in (current, old) if path.is_dir() and any(path.iterdir())), None)


def _names(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "checkpoint", folder / "checkpoint.old", folder / "checkpoint.new"
