"""Stores from somebody else: names and links lead nowhere outside, caches are checked."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hostile import rewrite
from synthetic import experiment

import dsabench
from dsabench.errors import StoreError
from dsabench.store import (
    RunWriter,
    SweepRecord,
    find_checkpoint,
    load_curves,
    load_metrics,
    load_runs,
    read_sweep,
    remove_runs,
    write_sweep,
)
from dsabench.store.index import INDEX


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "..", ".", "", "a/b", "a\\b", "x\n", "sweeps", "\x00", "x" * 300]
)
def test_an_id_that_could_name_something_outside_the_store_is_refused(tmp_path: Path, name: str) -> None:
    store = tmp_path / "runs"
    ids = experiment(store, lengths=(16,), seeds=(1, 2, 3))
    before = sorted(path.name for path in tmp_path.iterdir())
    rewrite(store / ids[0] / "run.json", run_id=name)
    rewrite(store / "sweeps" / "synthetic-00000000.json", run_ids=[*ids, name])
    with pytest.raises(StoreError, match="in a folder of another name"):
        dsabench.load_model(store, ids[0])
    frame = load_runs(store)
    assert set(frame["run_id"]) == set(ids) and "unreadable" in set(frame["status"])
    for call in (
        lambda: remove_runs(store, [name]),
        lambda: load_metrics(store, [name]),
        lambda: find_checkpoint(store, name),
        lambda: read_sweep(store, name),
        lambda: write_sweep(store, SweepRecord(id=name, spec={}, run_ids=["a"])),
        lambda: RunWriter.open(store, name, spec={}, fingerprint={}, environment={}),
    ):
        with pytest.raises(StoreError):
            call()
    rewrite(store / "sweeps" / "synthetic-00000000.json", id=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_removing_follows_no_link(tmp_path: Path) -> None:
    store, outside = tmp_path / "runs", tmp_path / "outside"
    ids = experiment(store, lengths=(16,), seeds=(1, 2, 3))
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    (store / ids[0] / "inner").symlink_to(outside)
    (store / ids[0] / "file").symlink_to(outside / "precious.txt")
    shutil.move(store / ids[1], outside / "run")
    (store / ids[1]).symlink_to(outside / "run")
    remove_runs(store, ids[:2])
    assert (outside / "precious.txt").read_text() == "precious" and (outside / "run" / "run.json").exists()
    assert not set(ids[:2]) & set(load_runs(store)["run_id"])


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "the folder"])
def test_a_run_is_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    """Older versions of filelock empty the file that a linked lock leads to."""
    store, precious = tmp_path / "runs", tmp_path / "precious"
    (run_id,) = experiment(store, lengths=(16,), seeds=(1,), attentions=({"kind": "dense"},))
    rewrite(store / run_id / "run.json", status="interrupted")
    if name == "the folder":
        shutil.move(store / run_id, precious)
        (store / run_id).symlink_to(precious)
        before = sorted(path.name for path in precious.iterdir())
    else:
        (store / run_id / name).unlink(missing_ok=True)
        precious.write_text('{"kind": "train", "step": 1}\n{"to')
        (store / run_id / name).symlink_to(precious)
    with pytest.raises(StoreError, match="a link, and nothing is written through one"):
        RunWriter.open(store, run_id, spec={}, fingerprint={}, environment={})
    if name == "the folder":
        assert sorted(path.name for path in precious.iterdir()) == before
    else:
        assert precious.read_text() == '{"kind": "train", "step": 1}\n{"to'


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_temporary_file_that_somebody_left_is_neither_followed_nor_waited_for(tmp_path: Path, kind: str) -> None:
    """Their names are known: a store of somebody else's may hold them, and a mere look at it writes its index."""
    store, precious = tmp_path / "runs", tmp_path / "precious"
    experiment(store, lengths=(16,), seeds=(1,))
    precious.write_text("precious")
    for name in ("index.parquet", ".index.json.gz", "curves.parquet"):
        (store / name).unlink(missing_ok=True)
        temporary = store / f".{name}.tmp"
        os.mkfifo(temporary) if kind == "pipe" else temporary.symlink_to(precious)
    assert len(load_runs(store)) == 2
    load_curves(store)
    assert precious.read_text() == "precious"
    for name in ("index.parquet", ".index.json.gz", "curves.parquet"):
        assert (store / name).is_file() and not (store / name).is_symlink()
    assert not list(store.glob("*.tmp"))


def test_an_index_of_other_types_or_columns_is_made_anew(tmp_path: Path) -> None:
    store = tmp_path / "runs"
    experiment(store, lengths=(16,), seeds=(1, 2))
    good = load_runs(store)
    whole = pq.read_table(store / INDEX)
    for change in (
        lambda frame: frame.assign(length="x"),
        lambda frame: frame.drop(columns=["status"]),
        lambda frame: frame.assign(run_id=list("abcd")),
        lambda frame: frame.iloc[:0],
        lambda frame: frame.set_index("run_id"),
        lambda frame: pd.DataFrame({"a": [1]}),
    ):
        changed = change(whole.to_pandas())
        table = pq.read_table(io.BytesIO(changed.to_parquet())).schema.metadata
        made = whole.from_pandas(changed).replace_schema_metadata(
            {**table, b"dsabench": whole.schema.metadata[b"dsabench"]}
        )
        pq.write_table(made, store / INDEX)
        pd.testing.assert_frame_equal(load_runs(store), good)


@pytest.mark.parametrize("damage", ["created", "rows", "pipe"])
def test_rows_behind_the_index_that_are_none_are_made_anew(tmp_path: Path, damage: str) -> None:
    import gzip

    store = tmp_path / "runs"
    ids = experiment(store, lengths=(16,), seeds=(1, 2))
    good = load_runs(store)
    token, *rows = map(json.loads, gzip.decompress((store / ".index.json.gz").read_bytes()).splitlines())
    if damage == "created":
        for row in rows:
            row["created"] = "yesterday"
    if damage == "rows":
        rows = [1] * len(rows)
    (store / ".index.json.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, [token, *rows])).encode()))
    if damage == "pipe":
        for name in ("index.parquet", ".index.json.gz", "curves.parquet"):
            (store / name).unlink(missing_ok=True)
            os.mkfifo(store / name)
    os.utime(store / ids[0] / "run.json")
    pd.testing.assert_frame_equal(load_runs(store), good)
