"""The index: never anything but a faster way to the table of all runs."""

import json
import math
import os
import shutil
import struct
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsabench.errors import StoreError
from dsabench.store import index, layout, load_runs, read_run


def rebuilt(store: Path) -> pd.DataFrame:
    """The table made from the run.json files alone."""
    for name in ("index.parquet", ".index.json.gz"):
        (store / name).unlink()
    return load_runs(store)


def test_the_index_is_the_whole_store_right_after_a_run_finishes(runs):
    for number in range(4):
        runs.add(f"r{number}", status="failed" if number == 1 else "done")
        frame = pd.read_parquet(runs.path / "index.parquet")
        assert list(frame.run_id) == [f"r{n}" for n in range(number + 1)]
        pd.testing.assert_frame_equal(frame, rebuilt(runs.path))


run_ids = st.sampled_from(["a", "b", "c"])
spec_values = st.sampled_from(
    [None, 1, 2**70, 10**400, 0.5, 1e-3, True, "auto", "1", [], [1], {}, {"deep": 1}, math.nan]
)
actions = st.one_of(
    st.tuples(st.just("add"), run_ids, spec_values, spec_values),
    st.tuples(st.just("remove"), run_ids),
    st.tuples(st.just("edit"), run_ids, spec_values),
    st.tuples(st.just("damage"), run_ids),
    st.tuples(st.just("look")),
)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(actions, min_size=1, max_size=6))
def test_the_index_equals_a_rebuild_whatever_happened(runs, steps):
    shutil.rmtree(runs.path, ignore_errors=True)
    runs.add("first")
    for action, *arguments in steps:
        folder = runs.path / arguments[0] if arguments else runs.path
        file = folder / "run.json"
        if action == "look":
            load_runs(runs.path)
        elif action == "add":
            shutil.rmtree(folder, ignore_errors=True)
            metric = arguments[2] if not isinstance(arguments[2], list | dict) else None
            runs.add(arguments[0], spec={"field": arguments[1]}, summary={"metric": metric})
            pd.testing.assert_frame_equal(pd.read_parquet(runs.path / "index.parquet"), load_runs(runs.path))
        elif action == "remove":
            shutil.rmtree(folder, ignore_errors=True)
        elif action == "damage" and folder.exists():
            file.write_bytes(b"{")
        elif action == "edit" and folder.exists() and file.read_bytes() != b"{":
            record = json.loads(file.read_bytes())
            file.write_text(json.dumps({**record, "spec": {"field": arguments[1]}}))
    incremental = load_runs(runs.path)
    pd.testing.assert_frame_equal(load_runs(runs.path), incremental)
    pd.testing.assert_frame_equal(pd.read_parquet(runs.path / "index.parquet"), incremental)
    pd.testing.assert_frame_equal(rebuilt(runs.path), incremental)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x00\xff" * 500),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "flipped": lambda path: path.write_bytes(bytes(b ^ (i % 97 == 50) for i, b in enumerate(path.read_bytes()))),
    "foreign": lambda path: pd.DataFrame({"x": [1]}).to_parquet(path),
}


@pytest.mark.parametrize("file", ["index.parquet", ".index.json.gz"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_rebuilt(runs, file, damage):
    for name in ("a", "b"):
        runs.add(name)
    expected = load_runs(runs.path)
    DAMAGES[damage](runs.path / file)
    pd.testing.assert_frame_equal(load_runs(runs.path), expected)
    runs.add("c")
    assert list(pd.read_parquet(runs.path / "index.parquet").run_id) == ["a", "b", "c"]
    pd.testing.assert_frame_equal(rebuilt(runs.path), load_runs(runs.path))


def test_a_value_that_changed_on_the_disk_is_not_believed(runs):
    runs.add(summary={"val_loss": 3.14159265})
    path = runs.path / "index.parquet"
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<d", 3.14159265))] ^= 1
    path.write_bytes(content)
    assert load_runs(runs.path).val_loss[0] == 3.14159265


def test_an_index_of_another_format_is_rebuilt(runs, monkeypatch):
    runs.add()
    with monkeypatch.context() as patch:
        patch.setattr(index, "_FORMAT", "older")
        patch.setattr(index, "table", lambda rows: pd.DataFrame({"run_id": ["wrong"]}))
        (runs.path / "index.parquet").unlink()
        load_runs(runs.path)
    assert list(load_runs(runs.path).run_id) == ["a"]


def test_only_what_changed_is_read(runs, monkeypatch):
    for name in ("a", "b", "c"):
        runs.add(name)
    read = []
    real = index.row_of
    monkeypatch.setattr(index, "row_of", lambda folder: read.append(folder.name) or real(folder))
    load_runs(runs.path)
    assert read == []
    runs.add("d")
    assert read == ["d"]
    (runs.path / "b" / "run.json").touch()
    load_runs(runs.path)
    assert read == ["d", "b"]
    shutil.rmtree(runs.path / "a")
    assert list(load_runs(runs.path).run_id) == ["b", "c", "d"]
    assert read == ["d", "b"]


def test_a_file_put_back_with_its_old_time_is_still_seen(runs):
    path = runs.add() / "run.json"
    load_runs(runs.path)
    before = path.stat()
    path.write_text(path.read_text().replace('"seed": 42', '"seed": 43'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_runs(runs.path).seed[0] == 43


def test_a_crash_shows_though_no_file_changed(runs):
    writer = runs.open("a")
    runs.add("b")
    assert list(pd.read_parquet(runs.path / "index.parquet").status) == ["running", "done"]
    assert list(load_runs(runs.path).status) == ["running", "done"]
    writer._lock.release()  # as the OS does for a dead process
    assert list(load_runs(runs.path).status) == ["interrupted", "done"]
    assert list(pd.read_parquet(runs.path / "index.parquet").status) == ["interrupted", "done"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"not json", "damaged"),
        (b"\x80\x81", "damaged"),
        (b"[]", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b'{"schema_version": 2}', "newer dsabench"),
        (b'{"schema_version": 1}', "run_id"),
        (None, "no run.json"),
        ("folder", "not a file"),
    ],
)
def test_a_run_that_cannot_be_read_is_listed_with_the_reason(runs, content, reason):
    runs.add("good")
    file = runs.add("bad") / "run.json"
    file.unlink()
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    for _ in range(2):  # read, then from the index
        frame = load_runs(runs.path).set_index("run_id")
        assert frame.status.to_dict() == {"bad": "unreadable", "good": "done"}
        assert str(runs.path / "bad") in frame.error["bad"]
        assert reason in frame.error["bad"]
    with pytest.raises(StoreError, match=reason):
        read_run(runs.path, "bad")


def test_a_renamed_folder_is_not_taken_for_another_run(runs):
    runs.add("a").rename(runs.path / "b")
    frame = load_runs(runs.path)
    assert list(frame.run_id) == ["b"]
    assert "the record of run 'a' in a folder of another name" in frame.error[0]


def test_other_things_in_the_store_are_no_runs(runs):
    runs.add("a")
    (runs.path / "notes").mkdir()
    (runs.path / ".git").mkdir()
    (runs.path / "todo.txt").touch()
    (runs.path / "gone").symlink_to("nowhere")
    assert list(load_runs(runs.path).run_id) == ["a"]


def test_a_store_whose_index_cannot_be_written_is_read_all_the_same(runs):
    runs.add("a")
    (runs.path / "index.parquet").unlink()
    (runs.path / "index.parquet").mkdir()  # in the way for root too
    assert list(load_runs(runs.path).run_id) == ["a"]
    with runs.open("b") as writer, pytest.raises(StoreError, match=r"index\.parquet"):
        writer.finish("done")
    assert load_runs(runs.path).status.tolist() == ["done", "done"]


def test_an_index_that_another_process_keeps_locked_is_read_all_the_same(runs, monkeypatch):
    runs.add("a")
    shutil.rmtree(runs.add("b"))
    monkeypatch.setattr(layout, "acquire", lambda path, timeout_s: None)
    assert list(load_runs(runs.path).run_id) == ["a"]
