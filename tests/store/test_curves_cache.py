"""The file that holds the cached curves: damaged, of another format, or not to be written, it spoils no answer."""

import json
import os
import struct

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curve_tools import assert_same, line

from dsabench.errors import StoreError
from dsabench.store import curves, load_curves


def other_metadata(path, **changes):
    table = pq.read_table(path)
    state = json.loads(table.schema.metadata[b"dsabench"]) | changes
    pq.write_table(table.replace_schema_metadata({b"dsabench": json.dumps(state).encode()}), path)


def renamed(path):
    table = pq.read_table(path)
    other = table.rename_columns([{"kl": "k1"}.get(n, n) for n in table.column_names])
    pq.write_table(other.replace_schema_metadata(table.schema.metadata), path)


def of_another_type(path):
    table = pq.read_table(path)
    at = table.column_names.index("kl")
    pq.write_table(table.set_column(at, "kl", pa.array(["x"] * len(table))), path)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<d", 3.14159265))] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x00\xff" * 500),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "foreign": lambda path: pd.DataFrame({"x": [1]}).to_parquet(path),
    "a changed value": flipped,
    "a changed name": renamed,
    "a changed type": of_another_type,
    "another format": lambda path: other_metadata(path, format="0"),
    "signatures of another shape": lambda path: other_metadata(path, signatures=[]),
    "damaged of another shape": lambda path: other_metadata(path, damaged={"a": 3}),
    "more fields": lambda path: other_metadata(path, more=1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(runs, damage):
    for name in "ab":
        (runs.older(name) / "metrics.jsonl").write_bytes(line(stage="sparse", val_loss=3.14159265, kl=1.0))
    before = load_curves(runs.path)
    DAMAGES[damage](runs.path / "curves.parquet")
    assert_same(load_curves(runs.path), before)
    with (runs.path / "b/metrics.jsonl").open("ab") as file:
        file.write(line(step=1, kl=2.0))
    assert load_curves(runs.path).frame.kl.tolist() == [1.0, 1.0, 2.0]


def test_a_store_that_cannot_be_written_is_read_all_the_same(runs, monkeypatch):
    (runs.older() / "metrics.jsonl").write_bytes(line(val_loss=3.0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)  # for root too
        assert load_curves(runs.path).frame.val_loss.tolist() == [3.0]
        assert not (runs.path / "curves.parquet").exists()
    with monkeypatch.context() as patch:
        patch.setattr(curves, "acquire", lambda path, timeout_s: None)  # another process is at it
        assert load_curves(runs.path).frame.val_loss.tolist() == [3.0]
    monkeypatch.setattr(curves, "write_sealed", lambda *a: (_ for _ in ()).throw(StoreError("the disk is full")))
    assert load_curves(runs.path).frame.val_loss.tolist() == [3.0]
    assert not (runs.path / "curves.parquet").exists()


def test_a_folder_that_is_no_store_stays_as_it_was(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.lock").touch()
    (tmp_path / "a/metrics.jsonl").write_bytes(line(val_loss=3.0))
    assert load_curves(tmp_path).frame.val_loss.tolist() == [3.0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    with pytest.raises(StoreError, match="no run store there"):
        load_curves(tmp_path / "nowhere")
