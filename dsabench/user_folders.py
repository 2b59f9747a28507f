"""Folders that a user may not have: a home, and a place for temporary files."""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock

from dsabench import locks
from dsabench.errors import DsabenchError

_PREFIX = "dsabench-tmp-"

_UNLOCKED_S = 3600.0
"""Age at which a folder that nobody locked is abandoned: its process was killed just then."""

_ours: dict[Path, str] = {}
"""The temporary folders of this process, and what else a user can do where one's disk is full."""


def expanded(name: str | Path, error: type[DsabenchError]) -> Path:
    """`name` as a path, a leading ~ or ~USER replaced by that user's home folder; `error` where there is none."""
    if not str(name).startswith("~"):  # which a Path forgets of ./~
        return Path(name)
    try:
        return Path(name).expanduser()
    except RuntimeError:
        user = re.split(r"[/\\]", str(name))[0][1:]
        reason = f"there is no user {user!r}; put ./ before a name that begins with ~" if user else no_home()
        advice = "" if user else "; set HOME, or give the path without ~"
        raise error(f"{name}: {reason}{advice}") from None


def no_home() -> str:
    """Why the home folder of this process's user is not known, in words."""
    named = os.environ.get("HOME")
    if named is not None:
        return f"HOME = {named!r} is no absolute path"
    user = f", and user id {os.getuid()} is not in the password database" if hasattr(os, "getuid") else ""
    return f"the home folder is not known: HOME is not set{user}"


@contextmanager
def temporary_folder(otherwise: str = "") -> Iterator[Path]:
    """A folder that is removed at the end of the block; one whose process was killed, by whoever asks for the next.

    otherwise: what a user can do where its disk is full, beside freeing space and setting TMPDIR.

    Raises DsabenchError where no place for one can be written.
    """
    remove_abandoned()
    folder, lock = _locked_folder()
    _ours[folder] = otherwise
    try:
        yield folder
    finally:
        del _ours[folder]
        if lock is not None and sys.platform == "win32":  # which removes no file that is open
            lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.release()


def temporary_file() -> IO[bytes]:
    """A file without a name, which is gone with the last process that has it open. Raises as `temporary_folder`."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise _no_place(error) from error


def temporary_parent(path: Path) -> tuple[Path, str] | None:
    """The temporary folder of this process that `path` lies in, and what else a user can do; None for other places."""
    return next(((folder, what) for folder, what in _ours.items() if folder in (path, *path.parents)), None)


def remove_abandoned() -> None:
    """Remove this user's temporary folders whose processes on this machine have ended without removing them."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for name in [entry.path for entry in entries if entry.name.startswith(_PREFIX)]:
            remove_if_abandoned(Path(name))


def remove_if_abandoned(folder: Path, patience_s: float = 0.0) -> None:
    """Remove a folder that `temporary_folder` made if its process has ended, waiting so long for that end."""
    with suppress(OSError):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            return  # nothing that somebody else put there is touched
        if not (folder / _lock_name()).exists():
            if time.time() - found.st_mtime > _UNLOCKED_S:
                folder.rmdir()  # which leaves one that has a file, another machine's lock for example
            return
        lock = locks.acquire(folder / _lock_name(), patience_s)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def _locked_folder() -> tuple[Path, FileLock | None]:
    """A new folder, and the lock in it that says it is in use; None where the file system refuses locks."""
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            raise _no_place(error) from error
        try:
            lock = locks.acquire(folder / _lock_name(), 1.0)
        except locks.NoLocksError:
            return folder, None  # nobody takes it for abandoned, because nobody can lock it
        except (FileNotFoundError, FileExistsError):  # somebody took it for abandoned at once
            continue
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _no_place(error) from error
        if lock is not None and (folder / _lock_name()).exists():
            return folder, lock
        if lock is not None:  # somebody looked between the making of the lock's file and the locking, and removed it
            lock.release()


def _lock_name() -> str:
    # A file system that machines share may keep its locks to each of them.
    return f"in-use-on-{platform.node()}"


def _no_place(error: OSError) -> DsabenchError:
    named = os.environ.get("TMPDIR")
    place = f"TMPDIR = {named}" if named else "/tmp and its like"
    return DsabenchError(
        f"no place for temporary files: {place} cannot be written ({error.strerror or error}); "
        "set the environment variable TMPDIR to a folder that can"
    )
