"""A file lock that ends with its process, however it ends; and the finding that a file system has none."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from filelock import FileLock, Timeout

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
"""How file systems say that somebody else holds a lock."""


class NoLocksError(OSError):
    """The file system refuses locks."""


def acquire(path: Path, timeout_s: float) -> FileLock | None:
    """Take the lock file `path`, waiting up to `timeout_s` (for ever below 0); None when another process keeps it.

    Raises:
        NoLocksError: the file system refuses locks.
        OSError: the lock file cannot be made or opened.
    """
    _check_locks(path)
    # thread_local=False: whichever thread ends the work may free it.
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        return None
    except NotImplementedError as error:
        raise NoLocksError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(path)) from error
    return lock


def _check_locks(path: Path) -> None:
    # Versions of filelock take a refusal for a lock that somebody holds, and wait; or lock by a file, which stays when
    # its process is killed.
    if sys.platform == "win32":
        return
    import fcntl

    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who looks at the lock meanwhile sees no writer
    except OSError as error:
        if error.errno not in _HELD:
            raise NoLocksError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)
