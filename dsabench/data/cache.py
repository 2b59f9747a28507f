"""The cache of what is slow to make: digests of files, trained tokenizers, token arrays, downloaded text.

Every entry is named by a digest of what it was made from and appears at once, by a rename, so that readers need no
lock and a killed process leaves nothing that looks whole. Anything in it may be deleted at any time between runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from dsabench.errors import DataError
from dsabench.locks import NoLocksError, acquire
from dsabench.user_folders import expanded, no_home

_ADVICE = "name a folder you can write in the environment variable DSABENCH_CACHE"


def cache_root() -> Path:
    """$DSABENCH_CACHE, else the user's cache folder of the platform. Raises DataError where there is no home folder."""
    named = os.environ.get("DSABENCH_CACHE")
    return expanded(named, DataError) if named else _user_cache()


def cache_folder(kind: str) -> Path:
    """<cache>/<kind>, made if need be."""
    folder = cache_root() / kind
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _user_cache() -> Path:
    with suppress(RuntimeError):
        folder = Path(platformdirs.user_cache_dir("dsabench"))
        if folder.parts[:1] != ("~",):  # as older versions leave it, which would be a folder of that name here
            return folder
    raise DataError(f"no place for the data cache: {no_home()}; {_ADVICE}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of writing to the cache (read-only, disk full, no locks) into a DataError that says what to
    do."""
    try:
        yield
    except NoLocksError as error:
        raise DataError(
            f"{path}: the file system of the data cache refuses locks ({error.strerror}); on another one, {_ADVICE}"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot write the data cache at {path}: {error.strerror or error}; free some space, or {_ADVICE}"
        ) from error


def digest(*values: Any) -> str:
    """SHA-256, in hex, of JSON values and bytes in order; unambiguous, because each is preceded by its size."""
    whole = hashlib.sha256()
    for value in values:
        data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.hexdigest()


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Make `path` whole or not at all: write(temporary file beside it), then rename."""
    temporary = path.with_name(f"{_temporary(path)}{secrets.token_hex(8)}")
    with writing(path):
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> str:
    return f".{path.name}.tmp-"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and is removed when it does not.

    A folder that stands at `path` (a damaged entry) makes way; whoever has its files mapped keeps them. The caller
    holds the entry's lock, so that what stands beside it half-made is left from a killed process and is removed.
    """
    temporary, old = (path.with_name(f"{_temporary(path)}{name}") for name in ("new", "old"))
    with writing(path):
        _remove(temporary)
        _remove(old)
        temporary.mkdir()
    try:
        yield temporary
        with writing(path):
            if path.exists():
                path.replace(old)
            temporary.replace(path)
    finally:
        with suppress(OSError):  # what cannot be removed now is removed when the entry is made again
            _remove(temporary)
            _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold `path`'s lock, so that an entry is made once; the system frees the lock of a process that dies."""
    with writing(path):
        lock = acquire(path.with_name(path.name + ".lock"), 0)
        if lock is None:
            tell("another process is preparing this data; waiting for it")
            lock = acquire(path.with_name(path.name + ".lock"), -1)
            assert lock is not None, "it was waited for"
    try:
        yield
    finally:
        lock.release()
