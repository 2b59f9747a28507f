"""The store itself: where it can be, and its sweeps."""

import json
import os
import re
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dsabench.errors import StoreError
from dsabench.store import (
    SweepRecord,
    check_writable,
    load_metrics,
    load_runs,
    read_sweep,
    readable_sweeps,
    write_sweep,
)


def test_a_place_that_can_be_a_store_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "deep" / "down" / "runs")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable(Path("runs"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "runs", "deep/runs"])
def test_a_file_in_the_way(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(StoreError, match=r"file: a file is in the way; the store needs a folder \(--store DIR\)"):
        check_writable(file / below)
    assert file.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that refuses new files to root too")
def test_a_place_that_cannot_be_written(runs):
    with pytest.raises(StoreError, match=r"/proc/runs: "):
        check_writable(Path("/proc/runs"))
    with pytest.raises(StoreError, match=r"/proc/runs: "):
        write_sweep("/proc/runs", SweepRecord(id="s", spec={}, run_ids=["a"]))


def test_a_store_without_write_permission():
    """Root may write everywhere, and is nobody for a moment."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "runs"
        store.mkdir(mode=0o555)
        Path(folder).chmod(0o755)
        try:
            if root:
                os.seteuid(65534)
            with pytest.raises(StoreError, match=r"runs: Permission denied; give a store"):
                check_writable(store)
        finally:
            if root:
                os.seteuid(0)


def test_a_store_of_a_newer_schema_is_neither_read_nor_written(runs):
    runs.add()
    assert json.loads((runs.path / "store.json").read_bytes()) == {"schema_version": 1}
    (runs.path / "store.json").write_text('{"schema_version": 2, "more": 1}')
    calls = (check_writable, load_runs, load_metrics, readable_sweeps, lambda path: runs.open("b"))
    for call in calls:
        with pytest.raises(StoreError, match=r"store.json: schema_version 2 .* newer dsabench; .* reads up to 1"):
            call(runs.path)
    assert not (runs.path / "b").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"schema_version": "1"}', b"\xff\xfe\x00", b"[" * 9999])
def test_a_damaged_mark_is_named(runs, content):
    runs.add()
    (runs.path / "store.json").write_bytes(content)
    for call in (check_writable, load_runs):
        with pytest.raises(StoreError, match=r"store.json: damaged"):
            call(runs.path)


@pytest.mark.parametrize("call", [load_runs, load_metrics, readable_sweeps])
def test_reading_where_no_store_is(tmp_path, call):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="no run store there"):
        call(tmp_path / "runs")
    with pytest.raises(StoreError, match="a file, not a run store"):
        call(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def sweep(name: str, minutes: int = 0) -> SweepRecord:
    time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    return SweepRecord(id=name, spec={"axes": {"seed": [1]}}, run_ids=["b", "a"], created=time, updated=time)


def test_sweeps_read_back_and_the_last_written_is_the_newest(tmp_path):
    store = tmp_path / "runs"
    for record in (sweep("old"), sweep("new", 2), sweep("mid", 1)):
        write_sweep(store, record)
        read = read_sweep(store, record.id)
        assert read == record.model_copy(update={"order": read.order, "seal": read.seal, "version": read.version})
    assert [record.id for record in readable_sweeps(store)[0]] == ["mid", "new", "old"]
    write_sweep(store, sweep("old", 3))
    assert [record.id for record in readable_sweeps(store)[0]] == ["old", "mid", "new"]
    assert sorted(path.name for path in (store / "sweeps").iterdir()) == ["mid.json", "new.json", "old.json"]
    assert len(load_runs(store)) == 0


def test_a_store_without_sweeps_has_none(runs):
    runs.add()
    assert readable_sweeps(runs.path) == ([], [])
    with pytest.raises(StoreError, match=r"no such sweep; there are: none at all"):
        read_sweep(runs.path, "s")


def test_a_sweep_that_cannot_be_read_is_named(tmp_path):
    write_sweep(tmp_path, sweep("good"))
    with pytest.raises(StoreError, match=r"no such sweep; there are: good"):
        read_sweep(tmp_path, "bad")
    for name in ("../good", "", "a/b"):
        with pytest.raises(StoreError, match="sweep id"):
            read_sweep(tmp_path, name)
    content = (tmp_path / "sweeps" / "good.json").read_text()
    for damage, message in (
        (content[:-9], "damaged"),
        (content, "another name"),
        (content.replace('"schema_version": 1', '"schema_version": 7'), "newer dsabench"),
        (content.replace('"run_ids"', '"ids"'), "run_ids: Field required"),
    ):
        (tmp_path / "sweeps" / "bad.json").write_text(damage)
        records, problems = readable_sweeps(tmp_path)
        assert [record.id for record in records] == ["good"]
        assert re.search(rf"bad\.json: .*{message}", *problems)
