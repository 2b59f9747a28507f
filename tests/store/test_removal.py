"""Removing runs: whole or gone at every moment, and nothing else is touched."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from dsabench.errors import StoreError
from dsabench.store import (
    RunBusyError,
    SweepRecord,
    find_name,
    layout,
    load_curves,
    load_runs,
    read_run,
    removal,
    remove_runs,
    run_files,
    sweeps_naming,
    write_sweep,
)


def names(store):
    return [p.name for p in sorted(store.iterdir()) if p.is_dir()]


def test_a_removed_run_is_gone_with_its_files_and_from_the_index(runs):
    for name in "abc":
        folder = runs.add(name)
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint/model.safetensors").write_bytes(b"x" * 10)
    load_curves(runs.path)
    assert remove_runs(runs.path, ["c", "a", "c"]) == ["c", "a"]
    assert names(runs.path) == ["b"]
    assert list(pd.read_parquet(runs.path / "index.parquet").run_id) == ["b"], "without another reader"
    assert list(load_runs(runs.path).run_id) == ["b"]
    assert set(load_curves(runs.path, kind="train").frame.run_id) == {"b"}
    with pytest.raises(StoreError, match="no such run"):
        read_run(runs.path, "a")
    runs.add("a")
    assert list(load_runs(runs.path).run_id) == ["a", "b"]


def test_a_run_that_cannot_be_read_can_be_removed(runs):
    (runs.add("bad") / "run.json").write_bytes(b"{")
    runs.add("good")
    assert find_name(runs.path, "ba") == "bad"
    remove_runs(runs.path, ["bad"])
    assert list(load_runs(runs.path).run_id) == ["good"]


def test_a_run_that_a_process_writes_is_refused_before_anything_is_removed(runs):
    runs.add("a")
    with runs.open("b"), pytest.raises(RunBusyError, match="run b: another process is writing it; nothing was removed"):
        remove_runs(runs.path, ["a", "b"])
    assert names(runs.path) == ["a", "b"]
    assert remove_runs(runs.path, ["a", "b"]) == ["a", "b"]


def test_a_run_that_a_process_takes_up_in_between_is_refused_and_the_rest_told(runs, monkeypatch):
    for name in "abc":
        runs.add(name, status="failed")
    monkeypatch.setattr(removal, "is_held", lambda path: False)
    with runs.open("b"), pytest.raises(RunBusyError, match=r"run b: .* \(removed: a; not removed: b, c\)"):
        remove_runs(runs.path, ["a", "b", "c"])
    assert names(runs.path) == ["b", "c"]
    assert list(pd.read_parquet(runs.path / "index.parquet").run_id) == ["b", "c"]


@pytest.mark.parametrize("name", ["nowhere", "sweeps", "index.parquet", "..", "../runs", "", ".hidden", "/etc", "a/.."])
def test_what_is_no_run_of_the_store_is_refused(runs, name):
    runs.add("a")
    write_sweep(runs.path, SweepRecord(id="s", spec={}, run_ids=["a"]))
    before = sorted(runs.path.rglob("*"))
    with pytest.raises(StoreError):
        remove_runs(runs.path, ["a", name])
    assert sorted(runs.path.rglob("*")) == before, "not even the run named before it"


def test_a_linked_run_loses_its_link_and_nothing_else(runs, tmp_path):
    outside = tmp_path / "outside"
    runs.add("a").rename(outside)
    record = (outside / "run.json").read_bytes()
    (runs.path / "a").symlink_to(outside)
    assert list(load_runs(runs.path).run_id) == ["a"]
    assert remove_runs(runs.path, ["a"]) == [f"a (a link; {outside} is as it was)"]
    assert (outside / "run.json").read_bytes() == record
    assert not os.path.lexists(runs.path / "a")


def test_links_inside_a_run_are_not_followed(runs, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    folder = runs.add("a")
    (folder / "checkpoint").symlink_to(kept)
    (folder / "file").symlink_to(kept / "file")
    assert run_files(runs.path, "a").keys() == {".lock", "file", "metrics.jsonl", "run.json"}
    remove_runs(runs.path, ["a"])
    assert (kept / "file").read_text() == "x"


def linked(folder, patch):
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(folder / "made")
    return "lock is a link, .*; remove the link first"


def denied(*refused):
    """As for a user who may not change these; root, who runs some tests, may change all."""
    honest = os.access

    def access(path, mode, **more):
        return honest(path, mode, **more) and not (mode & os.W_OK and os.fspath(path) in map(os.fspath, refused))

    return access


def shut(folder, patch):
    patch.setattr(os, "access", denied(folder))
    return f"you may not change the folder {folder}"


def shut_inside(folder, patch):
    (folder / "checkpoint").mkdir()
    patch.setattr(os, "access", denied(folder / "checkpoint"))
    return f"you may not change the folder {folder / 'checkpoint'}"


def shut_lock(folder, patch):
    patch.setattr(os, "access", denied(folder / ".lock"))
    return f"you may not open {folder / '.lock'}"


def of_another(folder, patch):
    folder.parent.chmod(0o1777)
    patch.setattr(os, "geteuid", lambda: 1234567)
    return r"it belongs to another user \(id \d+\)"


@pytest.mark.parametrize("place", [0, 1, 2], ids=["the first", "one between", "the last"])
@pytest.mark.parametrize("obstacle", [linked, shut, shut_inside, shut_lock, of_another])
def test_one_that_cannot_be_removed_is_named_and_nothing_is(runs, monkeypatch, obstacle, place):
    folders = [runs.add(name) for name in "abc"]
    why = obstacle(folders[place], monkeypatch)
    before = sorted(runs.path.rglob("*"))
    name = r"a \(and 2 more\)" if obstacle is of_another else "abc"[place]
    with pytest.raises(StoreError, match=rf"^run {name}: .*{why}.*; nothing was removed$"):
        remove_runs(runs.path, ["a", "b", "c"])
    assert sorted(runs.path.rglob("*")) == before


def test_a_store_that_may_not_be_changed_is_named_and_nothing_is_removed(runs, monkeypatch):
    runs.add("a")
    monkeypatch.setattr(os, "access", denied(runs.path))
    with pytest.raises(StoreError, match=rf"^{runs.path}: you may not change this folder; nothing was removed"):
        remove_runs(runs.path, ["a"])
    assert names(runs.path) == ["a"]


@pytest.mark.parametrize("fails_at", range(4))
def test_a_removal_that_fails_amid_says_what_is_gone_and_what_is_not(runs, monkeypatch, fails_at):
    ids = list("abcd")
    for name in ids:
        runs.add(name)
    honest = os.rename

    def rename(old, new):
        if os.fspath(old).endswith(ids[fails_at]):
            raise OSError(5, "Input/output error")
        honest(old, new)

    monkeypatch.setattr(os, "rename", rename)
    gone, left = ids[:fails_at], ids[fails_at:]
    said = "; ".join([f"removed: {', '.join(gone)}"] * bool(gone) + [f"not removed: {', '.join(left)}"])
    with pytest.raises(StoreError) as caught:
        remove_runs(runs.path, ids)
    assert str(caught.value) == f"{runs.path / ids[fails_at]}: Input/output error ({said})"
    assert names(runs.path) == left and list(load_runs(runs.path).run_id) == left


def test_a_lock_that_is_a_link_is_not_followed(runs, tmp_path):
    folder = runs.add("a")
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(StoreError):
        remove_runs(runs.path, ["a"])
    assert not (tmp_path / "made").exists()


KILLED = """
import os, shutil, sys
from dsabench.store import removal, remove_runs
point = sys.argv[2]
if point == "before the rename":
    os.rename = lambda *names: os._exit(9)
elif point == "after the rename":
    removal.sync_folder = lambda folder: os._exit(9)
else:
    def half(folder, **settings):
        (folder / "run.json").unlink()
        os._exit(9)
    removal.shutil.rmtree = half
remove_runs(sys.argv[1], ["a"])
"""


@pytest.mark.parametrize("point", ["before the rename", "after the rename", "half deleted"])
def test_a_kill_leaves_the_run_whole_or_gone(runs, point):
    for name in "abc":
        runs.add(name)
    whole = run_files(runs.path, "a")
    done = subprocess.run([sys.executable, "-c", KILLED, str(runs.path), point], timeout=60, check=False)
    assert done.returncode == 9
    if point == "before the rename":
        assert run_files(runs.path, "a") == whole
        assert list(load_runs(runs.path).status) == ["done"] * 3
    else:
        assert list(load_runs(runs.path).run_id) == ["b", "c"]
    remove_runs(runs.path, ["b"])
    assert [p.name for p in runs.path.glob(".removed*")] == [], "what the kill left goes with the next one"


def test_a_folder_that_cannot_be_renamed_stays(runs, monkeypatch):
    runs.add("a")

    def refuse(*names):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StoreError, match=r"Permission denied.*\(not removed: a\)"):
        remove_runs(runs.path, ["a"])
    assert read_run(runs.path, "a").status == "done"


def test_files_that_cannot_be_deleted_are_said(runs, monkeypatch):
    runs.add("a")
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)
    with pytest.raises(
        StoreError, match=r"run a is removed, but not all of its files could be deleted: .*\.removed\.a.*\(removed: a\)"
    ):
        remove_runs(runs.path, ["a"])
    assert load_runs(runs.path).empty


def test_an_index_that_cannot_be_written_is_said_after_the_removal(runs, monkeypatch):
    runs.add("a")
    monkeypatch.setattr(layout, "acquire", lambda path, timeout_s: None)
    with pytest.raises(StoreError, match=r"\.index\.lock.*\(removed: a\)$"):
        remove_runs(runs.path, ["a"])
    assert names(runs.path) == []


def test_a_writer_can_begin_the_removed_run_anew_at_once(runs):
    for _ in range(5):
        runs.add("a")
        remove_runs(runs.path, ["a"])
    with runs.open("a") as writer:
        assert writer.record.status == "running"


def test_sweeps_that_name_removed_runs_are_known(runs):
    for name in "ab":
        runs.add(name)
    for sweep, ids in {"one": ["a", "b"], "two": ["b"], "none": []}.items():
        write_sweep(runs.path, SweepRecord(id=sweep, spec={}, run_ids=ids))
    remove_runs(runs.path, ["a", "b"])
    assert sweeps_naming(runs.path, ["a", "b"]) == {"one": 2, "two": 1}
    assert sweeps_naming(runs.path, ["a"]) == {"one": 1}


def test_a_start_of_an_id_names_a_run_and_nothing_names_none(runs):
    for name in ("dsa-1", "dsa-2", "dsa"):
        runs.add(name)
    assert find_name(runs.path, "dsa") == "dsa"
    assert find_name(runs.path, "dsa-2") == "dsa-2"
    remove_runs(runs.path, ["dsa"])
    with pytest.raises(StoreError, match="2 runs start with that: dsa-1, dsa-2"):
        find_name(runs.path, "dsa")
    remove_runs(runs.path, ["dsa-1"])
    with pytest.raises(StoreError, match="no run starts with that; there are: dsa-2"):
        find_name(runs.path, "")
