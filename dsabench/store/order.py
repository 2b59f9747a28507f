"""The order in which a store's records were written: a number that grows, also where the clock goes back."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dsabench.errors import StoreError
from dsabench.store.files import acquire, read_regular, refuse_links, signature, write_all
from dsabench.store.layout import RECORD, SWEEPS
from dsabench.store.record_files import read_record
from dsabench.store.records import LAST, Record, microseconds, now

_LAST = ".order"
_LOCK = ".order.lock"
_PATIENCE_S = 120.0


def next_order(store: Path) -> int:
    """The number of what is written next: microseconds since 1970, or one more than the last where the clock is behind.

    So records of other stores and of before there were numbers fit in by their time. The last number is kept in a file;
    without it, the records themselves say it.

    Raises:
        StoreError: the lock cannot be taken.
    """
    path = store / _LAST
    refuse_links(path)
    lock = acquire(store / _LOCK, _PATIENCE_S)
    if lock is None:
        raise StoreError(f"{store}: another process has held {store / _LOCK} for {_PATIENCE_S:g} s; end it")
    try:
        last = _last(path)
        order = min(max(microseconds(now()), (_largest(store) if last is None else last) + 1), LAST)
        if path.exists() and signature(path) is None:
            raise StoreError(f"{path}: not a regular file; remove it")
        with suppress(OSError):  # of a full disk the record itself will tell
            # In place and not synced: after a power failure it may be behind, no further than the clock was.
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                write_all(fd, f"{order:020d}\n".encode("ascii"))
                os.ftruncate(fd, 21)
            finally:
                os.close(fd)
        return order
    finally:
        lock.release()


def _last(path: Path) -> int | None:
    """The number in the file; None without one, or when it is damaged."""
    with suppress(OSError, ValueError):
        text = read_regular(path)
        if len(text) == 21 and text.endswith(b"\n") and text[:-1].isdigit() and int(text) <= LAST:
            return int(text)
    return None


def _largest(store: Path) -> int:
    """The largest number of any record that can be read; 0 without one."""
    largest = 0
    for path in (*store.glob(f"[!.]*/{RECORD}"), *store.glob(f"{SWEEPS}/[!.]*.json")):
        with suppress(OSError, StoreError):
            largest = max(largest, read_record(path, Record).place)
    return largest
