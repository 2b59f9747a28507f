"""Files that survive a crash: atomic writes, fsync, readable errors, locks that end with their process."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from dsabench import locks
from dsabench.errors import ResultsError, StoreError
from dsabench.user_folders import temporary_parent

Signature = list[int] | None
"""What changes when a file does: times of modification and change, size, inode; None: no regular file."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def explain(path: Path, error: OSError, option: str = "--store") -> StoreError:
    """The StoreError that tells a user what `error` means for `path`, in a store that `option` names or in a temporary
    folder."""
    if (temporary := temporary_parent(path)) is not None:
        return _of_temporary(path, *temporary, error)
    if error.errno in _FULL:
        return StoreError(
            f"{path}: the disk is full ({error.strerror}); free some space and run the command again "
            "(what is in the store is whole, and a run that was interrupted goes on from its last checkpoint)"
        )
    if error.errno in _DENIED:
        return StoreError(
            f"{path}: {error.strerror}; give a store that you may read and write, for example {option} DIR"
        )
    if error.errno in _GONE:
        return StoreError(
            f"{path}: {error.strerror}; was the store moved, removed or unmounted? Put it back, or begin anew"
        )
    return StoreError(f"{path}: {error.strerror or error}")


def _of_temporary(path: Path, folder: Path, otherwise: str, error: OSError) -> StoreError:
    others = ["set the environment variable TMPDIR to a folder on another disk", *([otherwise] if otherwise else [])]
    if error.errno in _FULL:
        return StoreError(
            f"{folder}: the disk of this temporary folder is full ({error.strerror}), and nothing of it is kept; "
            f"{', '.join(['free some space there', *others[:-1]])}, or {others[-1]}"
        )
    return StoreError(
        f"{path}: {error.strerror or error}, in the temporary folder {folder}, of which nothing is kept; "
        f"{' or '.join(others)}"
    )


@contextmanager
def explained(path: Path, option: str = "--store") -> Iterator[None]:
    """Turn an OSError of the body into a StoreError that names `path`, as `explain`."""
    try:
        yield
    except OSError as error:
        raise explain(path, error, option) from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (renames and new files); Windows has no such call."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Make every file below `folder`, and every name, durable."""
    for here, _, names in os.walk(folder):
        for name in names:
            fd = os.open(Path(here, name), os.O_RDWR)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(here))


def write_all(fd: int, data: bytes) -> None:
    """Write `data` to `fd` to its end; the OS may take less at a time, as just before a disk is full."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_atomic(path: Path, data: bytes) -> None:
    """Give `path` the content `data`, or leave it as it was; raises StoreError as `replacing`.

    The caller holds the lock that guards `path`: its temporary file has one name, so that the next write replaces
    what a kill left of one.
    """
    with replacing(path, path.with_name(f".{path.name}.tmp")) as file:
        write_all(file.fileno(), data)


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the body ends; when it raises, `path` stays as it was.

    Temporary file, fsync, os.replace, fsync of the folder.

    Raises:
        StoreError: the file cannot be written; no temporary file is left.
    """
    with explained(path):
        with _replacing(path, temporary) as file:
            yield file
        sync_folder(path.parent)


@contextmanager
def results_file(path: Path, instead: str) -> Iterator[BinaryIO]:
    """A file of results, outside the store, that becomes `path` as a whole when the body ends.

    instead: what a user can do where it cannot be written.

    Raises:
        ResultsError: it cannot be written; what was there stays.
    """
    try:
        with _replacing(path) as file:
            yield file
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}; {instead}") from error


def write_file(path: Path, content: bytes) -> Path:
    """Replace a file of results, outside the store, as a whole, and make its folders; a reader never sees half of it.

    Raises:
        ResultsError: it cannot be written; what was there stays.
    """
    instead = "choose another folder with --out"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}; {instead}") from error
    with results_file(path, instead) as file:
        file.write(content)
    return path


@contextmanager
def _replacing(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    # The leading dot hides a temporary file that a kill left; the random part keeps two processes apart.
    temporary = temporary or path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # what a kill left; or a link or a pipe in somebody else's store
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)  # noqa: PTH105 (one name for tests to break)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_regular(path: Path) -> bytes:
    """The content of `path`; OSError for what is no regular file: a pipe would be waited for for ever."""
    if signature(path) is None and path.exists():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def signature(path: str | Path) -> Signature:
    """The signature of `path`, by one stat call."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path for each of 10,000 files takes longer than the call)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino]


def refuse_links(*paths: Path) -> None:
    """Raises StoreError for one that is a link: what is written there would be outside the store."""
    for path in paths:
        if path.is_symlink():
            raise StoreError(f"{path}: a link, and nothing is written through one; put what it leads to in its place")


def acquire(path: Path, timeout_s: float) -> FileLock | None:
    """Take the lock file `path`, waiting up to `timeout_s`; None when another process (or object) keeps it.

    The OS frees the lock when its process ends, however it ends.

    Raises:
        StoreError: the lock file cannot be made, or the file system has no locks.
    """
    refuse_links(path)  # older versions of filelock would empty the file that it leads to
    try:
        return locks.acquire(path, timeout_s)
    except locks.NoLocksError as error:
        raise StoreError(
            f"{path}: the file system refuses locks ({error.strerror}), and without them two processes could write one "
            "run; put the store on another file system, for example a local disk (--store DIR)"
        ) from error
    except OSError as error:
        raise explain(path, error) from error


def is_held(path: Path) -> bool | None:
    """Whether a process holds the lock file `path`; None when that cannot be told. Makes nothing."""
    if sys.platform == "win32":
        if not path.exists():
            return False
        lock = acquire(path, 0)
        if lock is not None:
            lock.release()
        return lock is None
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    try:
        # Shared, so that readers do not take each other for a writer; a writer waits longer than this takes.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    finally:
        os.close(fd)
    return False
