"""Locks that a file system refuses are told as such, by store and cache, and nobody waits for them."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsabench import locks
from dsabench.data import cache
from dsabench.errors import DataError, StoreError
from dsabench.store.files import acquire, is_held
from dsabench.store.layout import make_store

REFUSALS = [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EINVAL, errno.EIO]


@pytest.fixture(params=REFUSALS, ids=lambda number: errno.errorcode[number])
def refusal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system on which flock fails with this error; what the error is called."""
    number: int = request.param

    def flock(fd: Any, operation: int) -> None:
        raise OSError(number, errno.errorcode[number])

    monkeypatch.setattr(fcntl, "flock", flock)
    return errno.errorcode[number]


def message_of(kind: type[Exception], act: Callable[[], Any]) -> str:
    before = time.monotonic()
    with pytest.raises(kind) as caught:
        act()
    assert time.monotonic() - before < 30, "a refusal was waited for"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_store_says_so(tmp_path: Path, refusal: str) -> None:
    for act in (lambda: acquire(tmp_path / ".lock", 60), lambda: make_store(tmp_path / "runs")):
        message = message_of(StoreError, act)
        assert f"lock: the file system refuses locks ({refusal})" in message and "--store DIR" in message
    assert is_held(tmp_path / ".lock") is None, "nobody can say whether a process holds it"


def test_the_cache_says_so_in_place_of_waiting_for_nobody(tmp_path: Path, refusal: str) -> None:
    told: list[str] = []

    def hold() -> None:
        with cache.locked(tmp_path / "entry", told.append):
            pass

    message = message_of(DataError, hold)
    assert f"the file system of the data cache refuses locks ({refusal})" in message and "DSABENCH_CACHE" in message
    assert told == []


def test_a_lock_that_somebody_holds_is_no_refusal(tmp_path: Path) -> None:
    first = locks.acquire(tmp_path / "lock", 0)
    assert first is not None and locks.acquire(tmp_path / "lock", 0) is None
    assert is_held(tmp_path / "lock") is True
    first.release()
    again = locks.acquire(tmp_path / "lock", 0)
    assert again is not None
    again.release()
