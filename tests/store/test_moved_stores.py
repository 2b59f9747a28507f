"""A store that was moved, copied, linked or locked stays sealed; a reader beside a writer never sees damage."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from resealed import reseal

from dsabench.errors import StoreError
from dsabench.store import load_metrics, load_runs, read_run
from dsabench.store import reader as reading
from dsabench.store import table as tables
from dsabench.store.curves import load_curves
from dsabench.store.verification import damage


def write(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "state.json").write_text('{"step": 2}')


def copied(store: Path, to: Path) -> Path:
    """A copy with other times, as of rsync without -t."""
    shutil.copytree(store, to, copy_function=shutil.copyfile)
    for path in to.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return to


def linked(store: Path, to: Path) -> Path:
    to.symlink_to(store)
    return to


def locked(store: Path, to: Path) -> Path:
    shutil.copytree(store, to)
    for path in [*to.rglob("*"), to]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return to


WAYS: dict[str, Callable[[Path, Path], Path]] = {
    "moved": lambda store, to: store.rename(to),
    "copied": copied,
    "copied with times": lambda store, to: Path(shutil.copytree(store, to)),
    "linked": linked,
    "read-only": locked,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_store_stays_sealed_wherever_it_is_read(runs: Any, tmp_path: Path, way: str) -> None:
    for name, status in (("a", "done"), ("b", "failed"), ("c", "interrupted")):
        with runs.open(name) as writer:
            writer.metrics({"kind": "train", "step": 1, "loss": 2.0})
            writer.replace_checkpoint(write)
            writer.metrics({"kind": "eval", "step": 10, "val_loss": 3.0, "train_loss": 2.5})
            writer.finish(status, runs.SUMMARY)
    before = load_runs(runs.path), load_metrics(runs.path), load_curves(runs.path).frame
    there = WAYS[way](runs.path, tmp_path / "elsewhere")
    after = load_runs(there), load_metrics(there), load_curves(there).frame
    for one, other in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert list(after[0]["seal"]) == ["sealed"] * 3
    assert [damage(there / name, read_run(there, name), weights=True) for name in "abc"] == [[], [], []]


def test_a_reader_beside_a_writer_never_sees_damage(runs: Any) -> None:
    seen: list[str] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                frame = load_runs(runs.path)
                load_metrics(runs.path)
                seen.extend(load_curves(runs.path).damaged.values())
                seen.extend(frame["error"][frame["status"].isin(["damaged", "unreadable"])])
            except StoreError as error:
                seen.append(str(error))

    runs.add("z")
    thread = threading.Thread(target=read)
    thread.start()
    try:
        for turn in range(12):
            with runs.open("a") as writer:
                assert (writer.checkpoint() is None) is (turn == 0)
                writer.rewind(2 * turn)
                for step in (2 * turn + 1, 2 * turn + 2):
                    writer.metrics({"kind": "train", "step": step, "loss": 1.0 / (1 + step)})
                writer.replace_checkpoint(write)
                writer.metrics({"kind": "train", "step": 99})
                writer.finish("done" if turn == 11 else "interrupted", {})
    finally:
        over.set()
        thread.join()
    assert seen == []


@pytest.mark.parametrize("moment", ["record", "metrics"])
def test_a_run_taken_up_between_two_reads_is_no_damage(runs: Any, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The reader has the old record; the writer goes on before it reads the metrics."""
    folder = runs.add("a", "interrupted")
    owner, name = (tables, "read_folder") if moment == "record" else (reading, "_seal")
    honest, left = getattr(owner, name), [1]

    def overtaken(path: Path) -> Any:
        found = honest(path)
        if left and left.pop():
            with runs.open("a") as writer:
                writer.rewind(1)
                writer.metrics({"kind": "train", "step": 5, "loss": 0.5})
                writer.finish("interrupted", {})
        return found

    monkeypatch.setattr(owner, name, overtaken)
    if moment == "record":
        assert tables.row_of(folder)[0]["status"] == "interrupted"
    else:
        assert [record["step"] for record in reading.sealed_metrics(folder)] == [0, 1, 5]
    assert not left


@pytest.mark.parametrize("fatal", ["rename", "rmtree"])
def test_a_kill_on_the_way_back_to_the_checkpoint_before_leaves_a_whole_one(
    runs: Any, monkeypatch: pytest.MonkeyPatch, fatal: str
) -> None:
    with runs.open() as writer:
        for step in (1, 2):
            writer.metrics({"kind": "train", "step": step})
            writer.replace_checkpoint(write)
        writer.finish("interrupted", {})
    (writer.path / "checkpoint/model.safetensors").write_bytes(b"no weights")

    def dies(*arguments: Any, **more: Any) -> None:
        if fatal == "rmtree":  # half of the folder is gone, its seal first
            (Path(arguments[0]) / "seal.json").unlink()
        raise KeyboardInterrupt

    second = runs.open()
    with monkeypatch.context() as patch:
        patch.setattr("dsabench.store.atomic_folder." + {"rename": "os.rename", "rmtree": "shutil.rmtree"}[fatal], dies)
        with pytest.raises(KeyboardInterrupt):
            second.checkpoint()
    second._lock.release()
    with runs.open() as third:
        saved = third.checkpoint()
        assert saved is not None and (saved / "model.safetensors").read_bytes() == b"weights" * 100
        assert (saved / "seal.json").exists()


def test_a_torn_line_that_was_sealed_is_cut_only_when_the_record_no_longer_says_it(
    runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs.add("a", "interrupted")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "tra')
    reseal(folder)

    def dies(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dsabench.store.writer.write_atomic", dies)
        with pytest.raises(KeyboardInterrupt):
            runs.open("a")
    assert list(load_runs(runs.path)["status"]) == ["interrupted"]
