"""A full disk: one clear message, and everything that was whole stays whole."""

import errno
import os

import pytest

from dsabench.errors import ResultsError, StoreError
from dsabench.store import read_metrics, read_run
from dsabench.store.files import write_file


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def full_disk(monkeypatch, room: int = 0):
    """From now on the disk takes `room` more bytes."""
    left = [room]
    real = os.write

    def write(fd, data):
        taken = bytes(data)[: left[0]]
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(taken)
        return real(fd, taken)

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("room", [0, 7])
def test_a_full_disk_is_told_and_leaves_what_was_there(runs, monkeypatch, room):
    done = runs.add("done")
    before = tree(done)
    writer = runs.open()
    writer.metrics({"kind": "train", "step": 0})
    writer.replace_checkpoint(lambda folder: (folder / "w").write_text("1"))

    def write(folder):
        (folder / "w").write_text("2")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        full_disk(patch, room)
        with pytest.raises(StoreError, match=r"runs/a/metrics.jsonl: the disk is full"):
            writer.metrics({"kind": "train", "step": 1})
        with pytest.raises(StoreError, match=r"runs/a/checkpoint: the disk is full"):
            writer.replace_checkpoint(write)
        with pytest.raises(StoreError, match=r"runs/a/run.json: the disk is full"):
            writer.finish("done", {})
        with pytest.raises(StoreError, match="the disk is full"):
            runs.open("new")
        with pytest.raises(ZeroDivisionError) as caught, writer:
            raise ZeroDivisionError
        assert "could not be recorded" in caught.value.__notes__[0]
    assert not (runs.path / "new").exists()
    assert sorted(path.name for path in writer.path.iterdir() if path.name != ".lock") == [
        "checkpoint",
        "metrics.jsonl",
        "run.json",
    ]
    assert read_run(runs.path, "a").status == "interrupted"
    assert [record["step"] for record in read_metrics(runs.path, "a")] == [0]
    assert (writer.checkpoint() / "w").read_text() == "1"
    assert tree(done) == before
    with runs.open() as writer:
        writer.metrics({"kind": "train", "step": 1})
        writer.finish("done", {})
    assert [record["step"] for record in read_metrics(runs.path, "a")] == [0, 1]


def test_a_full_disk_is_no_fault_of_the_run(runs):
    with pytest.raises(StoreError), runs.open():
        raise StoreError("the disk is full")
    assert read_run(runs.path, "a").status == "interrupted"


def test_metrics_go_on_cleanly_when_there_is_room_again(runs, monkeypatch):
    with runs.open() as writer:
        writer.metrics({"kind": "train", "step": 0})
        with monkeypatch.context() as patch:
            full_disk(patch, 7)
            with pytest.raises(StoreError, match="the disk is full"):
                writer.metrics({"kind": "train", "step": 1})
        writer.metrics({"kind": "train", "step": 2})
    assert [record["step"] for record in read_metrics(runs.path, "a")] == [0, 2]


def test_a_file_of_results_is_all_or_nothing(tmp_path, monkeypatch):
    path = write_file(tmp_path / "a" / "b.json", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsError, match=r"b\.json: No space left on device"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
