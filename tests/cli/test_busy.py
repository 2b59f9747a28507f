"""Whether other programs keep the machine busy."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsabench.cli import busy_cores as busy
from dsabench.cli.busy_cores import Others


def stat(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = folder / "stat"
    path.write_text(text)
    monkeypatch.setattr(busy, "_STAT", path)


@pytest.mark.skipif(not busy._STAT.exists(), reason="only Linux tells")
def test_the_work_of_others_is_counted_and_ones_own_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(busy.os, "cpu_count", lambda: 4)
    times = iter([(1.0, 0.5, 0.0, 0.0, 0.0), (3.0, 1.5, 0.0, 1.0, 9.0)])  # 4 seconds of its own
    monkeypatch.setattr(busy.os, "times", lambda: next(times))
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(busy.time, "monotonic", lambda: next(clock))
    stat(tmp_path, monkeypatch, "cpu  100 0 0 1000 50 0 0 0 0 0\ncpu0 1 1\n")
    others = Others()
    stat(tmp_path, monkeypatch, "cpu  600 100 200 1900 90 50 50 100 77 0\n")  # 10 seconds more, in 4
    assert others.cores() == pytest.approx((10 - 4) / 4)


def test_a_program_that_works_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as hog:
        try:
            others, patience = Others(), time.monotonic() + 20
            while (cores := others.cores()) is not None and cores <= 0.2 and time.monotonic() < patience:
                time.sleep(0.05)
        finally:
            hog.kill()
    if not busy._STAT.exists():
        assert cores is None
    else:
        assert cores is not None and cores > 0.2


@pytest.mark.parametrize("text", ["", "cpu 1 2 3\n", "cpu a b c d e f g h\n"])
def test_where_nobody_says_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    stat(tmp_path, monkeypatch, text)
    assert Others().cores() is None and Others().note(2) is None
    monkeypatch.setattr(busy, "_STAT", tmp_path / "none")
    assert Others().note(2) is None


def test_a_note_only_where_threads_must_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(Others, "cores", lambda self: 1.0)
    assert Others().note(3) is None
    assert "about 1.0 of 4 cores busy" in str(Others().note(4))
    monkeypatch.setattr(Others, "cores", lambda self: 0.2)
    assert Others().note(4) is None
