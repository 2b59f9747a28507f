"""The newest sweep and the newest run are those that were written last, whatever the clock said meanwhile."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resealed import edit

from dsabench.analysis.scope import look_at
from dsabench.analysis.variants import label_variants
from dsabench.store import (
    RunWriter,
    SweepRecord,
    load_runs,
    read_run,
    read_sweep,
    readable_sweeps,
    records,
    write_sweep,
)
from dsabench.store.layout import make_store
from dsabench.store.order import next_order

START = datetime(2026, 1, 1, tzinfo=UTC)
minutes = st.integers(-(10**7), 10**7)


class _Meta(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, datetime)


@contextmanager
def clock(at: int) -> Iterator[None]:
    """The clock shows `at` minutes after START."""

    class Clock(datetime, metaclass=_Meta):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return START + timedelta(minutes=at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "datetime", Clock)
        yield


@contextmanager
def a_store() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder / "runs"
    finally:
        shutil.rmtree(folder)


def sweep(store: Path, name: str, *run_ids: str) -> None:
    write_sweep(store, SweepRecord(id=name, spec={}, run_ids=list(run_ids) or ["none"]))


def run(store: Path, name: str, seed: int = 1, loss: float = 4.0) -> None:
    spec = {"attention": {"kind": "dsa"}, "length": 64, "seed": seed, "data": {"source": "sotu"}}
    with RunWriter.open(store, name, spec=spec, fingerprint={}, environment={}) as writer:
        writer.finish("done", {"val_loss": loss})


def without_order(store: Path) -> None:
    """The store as an older version would have written it."""
    for path in (*store.glob("*/run.json"), *store.glob("sweeps/*.json")):
        record = json.loads(path.read_text())
        for name in ("order", "seal", "version"):
            record.pop(name, None)
        path.write_text(json.dumps(record))
    (store / ".order").unlink(missing_ok=True)


@settings(deadline=None, max_examples=25)
@given(st.lists(minutes, min_size=1, max_size=6))
def test_the_last_written_is_the_newest(times: list[int]) -> None:
    with a_store() as store:
        for i, at in enumerate(times):
            with clock(at):
                run(store, f"r{i}", loss=4.0 + i)
                sweep(store, f"s{i}", f"r{i}")
            assert read_sweep(store, f"s{i}").updated == START + timedelta(minutes=at), "the time is the clock's"
        assert [record.id for record in readable_sweeps(store)[0]] == [f"s{i}" for i in reversed(range(len(times)))]
        assert look_at(store).title == f"sweep s{len(times) - 1}"
        runs = label_variants(load_runs(store))
        assert list(runs.loc[runs["finished"], "run_id"]) == [f"r{len(times) - 1}"], "of one seed the newest counts"
        assert list(runs.sort_values("order")["run_id"]) == [f"r{i}" for i in range(len(times))]


@settings(deadline=None, max_examples=25)
@given(st.lists(minutes, min_size=1, max_size=5, unique=True), minutes)
def test_a_store_of_an_older_version_goes_by_time_and_what_follows_is_newer(times: list[int], later: int) -> None:
    with a_store() as store:
        for i, at in enumerate(times):
            with clock(at):
                sweep(store, f"s{i}")
        without_order(store)
        by_time = [f"s{i}" for i in sorted(range(len(times)), key=times.__getitem__, reverse=True)]
        assert [record.id for record in readable_sweeps(store)[0]] == by_time
        with clock(later):
            sweep(store, "new")
        assert [record.id for record in readable_sweeps(store)[0]] == ["new", *by_time]


@pytest.mark.parametrize("content", [None, b"", b"12", b"\0" * 21, b"x" * 20 + b"\n", b"9" * 20 + b"\n"])
def test_a_lost_or_damaged_counter_is_made_of_the_records(tmp_path: Path, content: bytes | None) -> None:
    with clock(100):
        run(tmp_path, "r")
        sweep(tmp_path, "s")
    (tmp_path / ".order").unlink()
    if content is not None:
        (tmp_path / ".order").write_bytes(content)
    with clock(0):
        run(tmp_path, "later")
        sweep(tmp_path, "t")
    assert [record.id for record in readable_sweeps(tmp_path)[0]] == ["t", "s"]
    assert read_run(tmp_path, "later").place > read_run(tmp_path, "r").place


def test_a_run_that_is_resumed_is_newer_than_what_was_written_meanwhile(tmp_path: Path) -> None:
    with clock(10), RunWriter.open(tmp_path, "a", spec={}, fingerprint={}, environment={}) as writer:
        writer.finish("interrupted")
    with clock(5):
        run(tmp_path, "b")
    with clock(0):
        run(tmp_path, "a")
    assert read_run(tmp_path, "a").place > read_run(tmp_path, "b").place
    assert read_run(tmp_path, "a").created > read_run(tmp_path, "a").updated, "the times are the clock's"


def test_numbers_are_taken_once(tmp_path: Path) -> None:
    make_store(tmp_path)
    with clock(0), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: next_order(tmp_path), range(100)))
    assert len(set(found)) == 100


def test_the_largest_number_ends_nothing(tmp_path: Path) -> None:
    sweep(tmp_path, "s")
    path = tmp_path / "sweeps/s.json"
    edit(path, order=records.LAST)
    (tmp_path / ".order").unlink()
    sweep(tmp_path, "t")
    assert read_sweep(tmp_path, "t").place == records.LAST
