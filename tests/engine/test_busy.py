"""The load of other programs: seen, recorded with each run, and noted where threads wait for each other."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from single_runs import spec_of

import dsabench
from dsabench.engine import busy_cores as busy
from dsabench.engine.busy_cores import Others
from dsabench.engine.sink import Update
from dsabench.sweeps import single_run


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


@pytest.mark.parametrize(("threads", "is_noted"), [(1, False), (3, False), (4, True), (8, True)])
def test_a_note_only_where_threads_must_share_and_wait(
    threads: int, is_noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread waits for no other, on a machine of one core either."""
    monkeypatch.setattr(busy.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(Others, "cores", lambda self: 1.0)
    assert ("about 1.0 of 4 cores busy" in str(Others().note(threads))) == is_noted
    monkeypatch.setattr(Others, "cores", lambda self: 0.2)
    assert (Others().note(threads) is not None) == (threads == 8)
    monkeypatch.setattr(busy.os, "cpu_count", lambda: 1)
    assert Others().note(1) is None


@pytest.mark.parametrize("spins", [None, "0", "1000"])
def test_the_note_advises_no_variable_that_is_set(spins: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if spins is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", spins)
    monkeypatch.setattr(busy.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(Others, "cores", lambda self: 1.0)
    assert ("GOMP_SPINCOUNT" in str(Others().note(2))) == (spins is None)


class Clock:
    """A machine on which a second passes whenever somebody looks, and others keep `cores` busy."""

    def __init__(self, cores: float) -> None:
        self.cores, self.now, self.busy = cores, 0.0, 0.0

    def __call__(self) -> busy._Moment:
        self.now += 1.0
        self.busy += self.cores + 2.0
        return busy._Moment(self.now, self.busy, own=2.0 * self.now)


@pytest.mark.parametrize("cores", [0.0, 0.75, 3.0])
def test_a_run_records_the_load_of_others(
    cores: float, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "_now", Clock(cores))
    record = single_run.train(spec_of(corpus, steps=4), tmp_path)
    assert record.summary["other_load"] == pytest.approx(cores)
    assert dsabench.load_runs(tmp_path)["other_load"].tolist() == [pytest.approx(cores)]


def test_a_run_that_was_stopped_has_the_mean_of_its_parts(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(update: Update) -> None:
        if update.step:
            raise KeyboardInterrupt

    spec = spec_of(corpus, steps=6, log_every=2)
    monkeypatch.setattr(busy, "_now", Clock(3.0))
    with pytest.raises(KeyboardInterrupt):
        single_run.train(spec, tmp_path, observe=stop)
    monkeypatch.setattr(busy, "_now", Clock(1.0))
    assert single_run.train(spec, tmp_path).summary["other_load"] == pytest.approx(2.0)


def test_where_nobody_says_a_run_records_none(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_STAT", tmp_path / "none")
    record = single_run.train(spec_of(corpus, steps=4), tmp_path / "runs")
    assert record.status == "done" and "other_load" not in record.summary
