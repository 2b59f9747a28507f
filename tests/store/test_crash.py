"""Kills at every point, and torn lines: what was whole stays whole."""

import gc
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resealed import unseal

from dsabench.errors import StoreError
from dsabench.store import find_checkpoint, load_runs, read_metrics, read_run

quick = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
MUTATIONS = ("open", "write", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "remove", "ftruncate")


class Killed(BaseException):
    """The process is gone."""


def die_at(monkeypatch, moment: int) -> list[str]:
    """Let `moment` calls that change files pass, and none after; the list of calls that were tried."""
    tried: list[str] = []

    def wrap(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            tried.append(name)
            if len(tried) > moment:
                raise Killed(name)
            return real(*args, **kwargs)

        return call

    for name in MUTATIONS:
        monkeypatch.setattr(os, name, wrap(name))
    return tried


def write_checkpoint(content: str):
    def write(folder):
        for name in ("model", "optimizer"):
            fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT)  # one of the calls that `die_at` counts
            os.write(fd, content.encode())
            os.close(fd)

    return write


def content_of(folder) -> set[str]:
    return {(folder / name).read_text() for name in ("model", "optimizer")}


ACTIONS = {
    "checkpoint": lambda writer: writer.replace_checkpoint(write_checkpoint("new")),
    "metrics": lambda writer: writer.metrics({"kind": "train", "step": 4}),
    "rewind": lambda writer: writer.rewind(1),
    "finish": lambda writer: writer.finish("done", {"val_loss": 1.0}),
}


def forget_the_dead() -> None:
    """A dead process holds no lock; from Python 3.12 on the exception that stands for its death keeps some alive."""
    if sys.version_info >= (3, 12):
        gc.collect()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_kill_at_any_moment_leaves_whole_files(runs, monkeypatch, action):
    runs.add("done")
    moment = 0
    while True:
        run_id = f"{action}{moment}"
        writer = runs.open(run_id)
        for step in range(4):
            writer.metrics({"kind": "train", "step": step})
            if step == 1 or action != "rewind":  # which goes back to the checkpoint
                writer.replace_checkpoint(write_checkpoint("old"))
        with monkeypatch.context() as patch:
            die_at(patch, moment)
            try:
                ACTIONS[action](writer)
                survived = True
            except Killed:
                survived = False
        forget_the_dead()
        writer._lock.release()  # as the OS does for a dead process

        assert content_of(find_checkpoint(runs.path, run_id)) in ({"old"}, {"new"})
        steps = [record["step"] for record in read_metrics(runs.path, run_id)]
        assert steps in ([0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4])
        status = read_run(runs.path, run_id).status
        assert status in ("interrupted", "done")
        frame = load_runs(runs.path).set_index("run_id")
        assert frame.status[run_id] == status
        assert frame.status["done"] == "done"
        pd.testing.assert_frame_equal(pd.read_parquet(runs.path / "index.parquet").set_index("run_id"), frame)
        if status != "done":
            with runs.open(run_id) as writer:
                writer.rewind(3)
                assert content_of(writer.checkpoint()) in ({"old"}, {"new"})
                writer.metrics({"kind": "train", "step": 9})
                writer.replace_checkpoint(write_checkpoint("next"))
                assert content_of(writer.checkpoint()) == {"next"}
                writer.finish("done")
            assert read_metrics(runs.path, run_id)[-1]["step"] == 9
            left = {path.name for path in writer.path.iterdir()}
            assert left - {".lock"} == {"run.json", "metrics.jsonl", "checkpoint"}
        assert not list(runs.path.glob(".*.tmp")), "what a kill left is overwritten by the next write"
        if survived:
            break
        moment += 1
    assert moment >= {"metrics": 1, "rewind": 3}.get(action, 6)  # the kills did happen


def test_a_kill_during_the_first_checkpoint_leaves_none_or_all_of_it(runs, monkeypatch):
    for moment in range(50):
        writer = runs.open(f"r{moment}")
        with monkeypatch.context() as patch:
            die_at(patch, moment)
            with suppress(Killed):
                writer.replace_checkpoint(write_checkpoint("first"))
                moment = None
        writer._lock.release()
        with runs.open(writer.record.run_id) as again:
            found = again.checkpoint()
            assert found is None or content_of(found) == {"first"}
        if moment is None:
            break
    assert moment is None


def test_a_kill_while_a_run_begins_can_be_made_good(runs, monkeypatch):
    runs.add("done")
    for moment in range(50):
        run_id = f"r{moment}"
        with monkeypatch.context() as patch:
            tried = die_at(patch, moment)
            try:
                writer = runs.open(run_id)
            except Killed:
                writer = None
        forget_the_dead()
        if writer is not None:
            assert moment >= 5, tried
            writer.__exit__(None, None, None)
            break
        frame = load_runs(runs.path).set_index("run_id")
        assert frame.status["done"] == "done"
        if run_id in frame.index:
            assert frame.status[run_id] in ("unreadable", "interrupted", "running")
        with runs.open(run_id) as again:
            again.finish("done")
    assert writer is not None
    assert set(load_runs(runs.path).status) == {"done", "interrupted"}


def test_a_failure_between_the_renames_is_repaired_by_the_next_checkpoint(runs, monkeypatch):
    with runs.open() as writer:
        writer.replace_checkpoint(write_checkpoint("old"))
        real, calls = os.rename, []

        def second_fails(source, target):
            calls.append(source)
            if len(calls) == 2:
                raise OSError(5, "Input/output error")
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", second_fails)
            with pytest.raises(StoreError, match="checkpoint: Input/output error"):
                writer.replace_checkpoint(write_checkpoint("new"))
        assert content_of(writer.checkpoint()) == {"old"}

        def fails(folder):
            (folder / "model").write_text("half")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            writer.replace_checkpoint(fails)
        assert content_of(writer.checkpoint()) == {"old"}
        writer.replace_checkpoint(write_checkpoint("next"))
        assert content_of(writer.checkpoint()) == {"next"}


def test_bytes_are_durable_before_they_get_their_name(runs, monkeypatch):
    calls = []

    def spy(name):
        real = getattr(os, name)

        def call(target, *rest):
            what = str(Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target)
            calls.append((name, what.rsplit("/", 1)[-1]))
            return real(target, *rest)

        monkeypatch.setattr(os, name, call)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell which file a descriptor is")
    with runs.open() as writer:
        writer.metrics({"kind": "train", "step": 0})
        writer.replace_checkpoint(write_checkpoint("old"))
        for name in ("fsync", "rename", "replace"):
            spy(name)
        writer.replace_checkpoint(write_checkpoint("new"))
        first, *middle, swap, last = calls
        assert first == ("fsync", "metrics.jsonl")
        assert sorted(middle) == [
            *[("fsync", "checkpoint.new"), ("fsync", "model"), ("fsync", "optimizer"), ("fsync", "seal.json")],
            ("rename", "checkpoint"),
        ]
        assert middle[-1] == ("rename", "checkpoint")
        assert (swap, last) == (("rename", "checkpoint.new"), ("fsync", "a"))
        calls.clear()
        writer.finish("done")
        assert calls[0] == ("fsync", "metrics.jsonl")
        for at in range(1, len(calls), 3):  # run.json, then the two files of the index and their seal
            write, rename, folder = calls[at : at + 3]
            assert write == ("fsync", rename[1])
            assert rename[0] == "replace"
            assert folder == ("fsync", "a" if at == 1 else "runs")
        assert len(calls) == 13


KILL_ME = """
import sys
from dsabench.store import RunWriter
writer = RunWriter.open(sys.argv[1], "a", spec={"length": 64}, fingerprint={}, environment={})
def save(step):
    def write(folder):
        for name in ("model", "optimizer"):
            (folder / name).write_text(str(step) * 5000)
        (folder / "step").write_text(str(step))
    return write
found = writer.checkpoint()
step = int((found / "step").read_text()) if found else -1
writer.rewind(step)
print("open", flush=True)
while True:
    step += 1
    writer.metrics({"kind": "train", "step": step, "loss": 1 / (step + 1), "text": "x" * 300})
    if step % 3 == 0:
        writer.replace_checkpoint(save(step))
"""


@pytest.mark.slow
def test_sigkill_loses_nothing_that_was_checkpointed(runs):
    runs.add("done")
    reached = -1
    for attempt in range(5):
        with subprocess.Popen([sys.executable, "-c", KILL_ME, runs.path], stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"open\n"
            time.sleep(random.Random(attempt).uniform(0.005, 0.15))
            process.kill()
        steps = [record["step"] for record in read_metrics(runs.path, "a")]
        assert steps == list(range(len(steps)))
        saved = find_checkpoint(runs.path, "a")
        if saved is not None:
            step = int((saved / "step").read_text())
            assert reached <= step <= steps[-1]
            assert content_of(saved) == {str(step) * 5000}
            reached = step
        assert load_runs(runs.path).set_index("run_id").status.to_dict() == {
            "a": "interrupted",
            "done": "done",
        }
    assert reached > 0


def test_a_torn_last_line_is_dropped_wherever_it_was_cut(runs):
    folder = runs.add(status="interrupted")
    unseal(folder)  # a kill writes no seal
    path = folder / "metrics.jsonl"
    whole, records = path.read_bytes(), read_metrics(runs.path, "a")
    for end in range(len(whole) + 1):
        for zeros in (b"", b"\0" * 5):  # a power failure can lengthen a file that it does not fill
            path.write_bytes(whole[:end] + zeros)
            assert read_metrics(runs.path, "a") == records[: whole[:end].count(b"\n")]


@quick
@given(end=st.integers(0, 200))
def test_what_is_written_after_a_torn_line_is_read(runs, end):
    with runs.open() as writer:
        writer.rewind(-1)
        for step in range(3):
            writer.metrics({"kind": "train", "step": step, "loss": 0.1})
    path = runs.path / "a" / "metrics.jsonl"
    cut = path.read_bytes()[:end]
    path.write_bytes(cut)
    with runs.open() as writer:
        writer.metrics({"kind": "train", "step": 9})
    steps = [record["step"] for record in read_metrics(runs.path, "a")]
    assert steps == [*range(cut.count(b"\n")), 9]


@given(steps=st.lists(st.integers(0, 9), max_size=6), to=st.integers(-1, 10))
@quick
def test_rewind_keeps_exactly_the_records_up_to_a_step(runs, steps, to):
    with runs.open() as writer:
        writer.rewind(-1)
        for step in steps:
            writer.metrics({"kind": "train", "step": step})
        writer.rewind(to)
        writer.metrics({"kind": "train", "step": 99})
    assert [r["step"] for r in read_metrics(runs.path, "a")] == [*(s for s in steps if s <= to), 99]
