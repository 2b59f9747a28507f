"""What the index costs grows with the store no faster than the store.

`pytest -m on_request tests/store/test_big_store.py` measures times of 10,000 runs (two minutes on two idle cores);
tests/support/big_store.py says how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import big_store
import pandas as pd
import pytest
from matplotlib.figure import Figure
from resealed import edit

from dsabench.analysis.scope import look_at
from dsabench.figures.catalogue import draw
from dsabench.figures.data import figure_data
from dsabench.figures.style import render
from dsabench.store import index, load_metrics, load_runs, reader, table

RUNS = 10_000
N = 300


@pytest.fixture
def store(tmp_path: Path) -> Path:
    big_store.write(tmp_path / "runs", N, metrics=False)
    return tmp_path / "runs"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many run.json were read, how many files looked at (two a run), and how many rows were written."""
    counts: Counter[str] = Counter()
    read, look, write = index.row_of, index.signature, index._write_index
    monkeypatch.setattr(index, "row_of", lambda folder: counts.update(["read"]) or read(folder))
    monkeypatch.setattr(index, "signature", lambda path: counts.update(["looked at"]) or look(path))
    monkeypatch.setattr(
        index, "_write_index", lambda store, frame, now: counts.update(written=len(frame)) or write(store, frame, now)
    )
    monkeypatch.setattr(index, "_PATIENCE_S", 1e9)  # no clock decides here
    return counts


def assert_whole(store: Path) -> None:
    """Who reads the file sees what `load_runs` gives, which is what run.json files say."""
    given = load_runs(store)
    pd.testing.assert_frame_equal(pd.read_parquet(store / "index.parquet"), given)
    big_store.forget_index(store)
    pd.testing.assert_frame_equal(load_runs(store), given)


def test_every_record_is_read_once_and_then_only_looked_at(store: Path, calls: Counter[str]) -> None:
    load_runs(store)
    assert calls == {"read": N, "looked at": 2 * N, "written": N}
    calls.clear()
    load_runs(store)
    assert calls == {"looked at": 2 * N}


def test_runs_that_end_do_not_each_cost_a_whole_store(store: Path, calls: Counter[str]) -> None:
    load_runs(store)
    calls.clear()
    for number in range(N, N + 12):  # 1/64 of 300 is 4.7
        big_store.end_one_more(store, number)
    assert calls["written"] == (N + 5) + (N + 10)
    assert calls["read"] == 10
    assert calls["looked at"] == 2 * calls["written"]
    calls.clear()
    assert len(load_runs(store)) == N + 12  # a reader misses none, though the file did
    assert calls["read"] == 2
    assert_whole(store)


@pytest.mark.slow
def test_a_store_that_grows_from_nothing_writes_each_row_a_bounded_number_of_times(
    tmp_path: Path, calls: Counter[str]
) -> None:
    store = tmp_path / "runs"
    for number in range(70):
        big_store.end_one_more(store, number)
        if number < 64:
            assert len(pd.read_parquet(store / "index.parquet")) == number + 1
    assert calls["written"] <= 65 * 70
    assert calls["read"] == calls_needed(70)
    assert_whole(store)


def calls_needed(n: int) -> int:
    """Reads of run.json when n runs end: one each, but for those that the last index lacks."""
    shown = 0
    for ended in range(1, n + 1):
        if shown < 64 or (ended - shown) * 64 >= shown:
            shown = ended
    return shown


def test_an_index_that_has_waited_long_is_made_whole_by_the_next_end(
    store: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_runs(store)
    monkeypatch.setattr(index, "_PATIENCE_S", 5e-3)
    old = time.time() - 10
    os.utime(store / "index.parquet", (old, old))
    big_store.end_one_more(store, N)
    assert len(pd.read_parquet(store / "index.parquet")) == N + 1


def test_what_another_did_meanwhile_is_seen_by_readers(store: Path, calls: Counter[str]) -> None:
    load_runs(store)
    gone, changed, *_ = reader.run_names(store)
    for path in (store / gone / "run.json", store / gone / ".lock"):
        path.unlink()
    edit(store / changed / "run.json", status="failed", error="why")
    big_store.end_one_more(store, N)  # leaves the file as it is
    assert len(pd.read_parquet(store / "index.parquet")) == N
    runs = load_runs(store).set_index("run_id")
    assert gone not in runs.index
    assert runs.status[changed] == "failed"
    assert len(runs) == N
    assert_whole(store)


def test_metrics_of_a_part_are_in_memory_at_a_time_and_no_line_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were most of what `load_metrics` cost in time and in memory."""
    big_store.write(tmp_path / "runs", 120)
    parts, real = [], table._records
    monkeypatch.setattr(table, "_records", lambda store, ids: parts.append(len(ids)) or real(store, ids))
    monkeypatch.setattr(reader, "_record", lambda *_: pytest.fail("a line was read alone"))
    assert len(load_metrics(tmp_path / "runs")) == 120 * 21
    assert parts == [50, 50, 20]


def test_a_page_is_drawn_twice_and_its_tables_are_narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third drawing of each page, and copies of every field of the spec, were much of what the figures cost."""
    big_store.write(tmp_path / "runs", 60)
    data = figure_data(look_at(tmp_path / "runs"))
    assert not [name for name in data.done if "." in name]
    assert not [name for name in data.pairs if name.count(".") > 1]
    drawn, real = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: drawn.append(figure) or real(figure, renderer))
    found = draw("learning", data)
    for page in found.pages:
        render(page, "png")
    assert len(drawn) == 2 * len(found.pages) > 0


@pytest.mark.on_request
def test_times(tmp_path: Path) -> None:
    script = Path(big_store.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "--runs", str(RUNS), str(tmp_path / "runs")],
        capture_output=True, text=True, timeout=1300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rebuild"] < 20, found
    assert found["load_runs"] < 1, found
    assert found["load_runs again"] < 1, found
    assert found["end of a run, median"] < 0.05, found
