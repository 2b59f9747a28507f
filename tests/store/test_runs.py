"""One run: what is written is what is read, by its one writer, and nothing else is touched."""

import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsabench.errors import StoreError
from dsabench.store import (
    RunBusyError,
    RunDoneError,
    RunRecord,
    find_checkpoint,
    find_run,
    load_metrics,
    read_metrics,
    read_run,
)

HOLD = """
import sys, time
from dsabench.store import RunWriter
with RunWriter.open(sys.argv[1], "a", spec={}, fingerprint={}, environment={}) as writer:
    print("open", flush=True)
    time.sleep(60)
"""

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def same(a, b):
    """Equality of JSON values in which NaN is itself and 1 is neither 1.0 nor True."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_a_finished_run_reads_back_as_it_was_written(runs):
    summary = {
        **runs.SUMMARY,
        "train_loss": math.nan,
        "val_loss": math.inf,
        "note": "\u00e9\u4e16\U0001f600",
        "x": None,
    }
    with runs.open(sweep="s") as writer:
        assert writer.record.status == "running"
        begun = writer.record.created
        written = writer.finish("done", summary, error="caf\u00e9 \udcff")
    read = read_run(runs.path, "a")
    assert same(read.model_dump(), written.model_dump())
    assert same(read.summary, summary)
    assert (read.status, read.sweep, read.created, read.spec) == ("done", "s", begun, runs.SPEC)
    assert read.error == "caf\u00e9 \\udcff"
    assert read.updated >= read.created
    assert read.created.utcoffset().total_seconds() == 0


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.dictionaries(st.text(min_size=1), values, max_size=3), max_size=4))
def test_metrics_survive_the_round_trip_exactly(runs, records):
    records = [{**r, "kind": "train", "step": i} for i, r in enumerate(records) if "run_id" not in r]
    with runs.open() as writer:
        writer.rewind(-1)
        for record in records:
            writer.metrics(record)
    assert same(read_metrics(runs.path, "a"), records)
    assert len(load_metrics(runs.path)) == len(records)


@pytest.mark.parametrize("record", [{}, {"kind": "train"}, {"kind": "train", "step": 1.5}, {"kind": 1, "step": 1}])
def test_a_metrics_record_needs_kind_and_step(runs, record):
    with runs.open() as writer, pytest.raises(TypeError, match="kind"):
        writer.metrics(record)


def test_metrics_reach_the_file_at_once_as_one_line_in_one_write(runs, monkeypatch):
    writes = []
    real = os.write
    with runs.open() as writer:
        monkeypatch.setattr(os, "write", lambda fd, data: writes.append(bytes(data)) or real(fd, data))
        writer.metrics({"kind": "eval", "step": 0, "val_loss": math.nan})
        assert len(writes) == 1
        assert (writer.path / "metrics.jsonl").read_bytes() == writes[0]
        assert writes[0].count(b"\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "error"),
    [
        (None, "interrupted", None),
        (KeyboardInterrupt(), "interrupted", None),
        (RuntimeError("why"), "failed", "RuntimeError: why"),
    ],
)
def test_a_run_left_without_finish_says_how_it_ended(runs, raised, status, error):
    with nullcontext() if raised is None else pytest.raises(type(raised)), runs.open():
        if raised is not None:
            raise raised
    assert (read_run(runs.path, "a").status, read_run(runs.path, "a").error) == (status, error)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_did_not_finish_is_taken_up_again(runs, status):
    runs.add(status=status, sweep="s1")
    first = read_run(runs.path, "a")
    with runs.open() as writer:
        assert (writer.record.status, writer.record.summary, writer.record.error) == ("running", {}, None)
        assert (writer.record.created, writer.record.sweep) == (first.created, "s1")
        assert len(read_metrics(runs.path, "a")) == 3


def test_a_finished_run_is_not_written_again(runs):
    folder = runs.add()
    before = tree(folder)
    with pytest.raises(RunDoneError, match=r"run a: done already; remove .*runs/a") as caught:
        runs.open()
    assert caught.value.record == read_run(runs.path, "a")
    assert tree(folder) == before


def test_a_closed_writer_writes_no_more(runs):
    with runs.open() as writer:
        writer.finish("done")
        for call in (
            lambda: writer.finish("failed"),
            lambda: writer.metrics({"kind": "train", "step": 0}),
            lambda: writer.rewind(0),
            lambda: writer.replace_checkpoint(lambda folder: None),
        ):
            with pytest.raises(RuntimeError, match="run a is done"):
                call()


def test_two_writers_in_one_process(runs):
    with runs.open():
        with pytest.raises(RunBusyError, match=r"run a: another process is writing it"):
            runs.open()
        with runs.open("b"):
            assert read_run(runs.path, "a").status == read_run(runs.path, "b").status == "running"
    with runs.open():
        pass


def test_another_process_holds_the_run_until_it_is_killed(runs):
    with subprocess.Popen([sys.executable, "-c", HOLD, runs.path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"open\n"
            with pytest.raises(RunBusyError):
                runs.open()
            assert read_run(runs.path, "a").status == "running"
        finally:
            process.kill()
    assert read_run(runs.path, "a").status == "interrupted"
    assert json.loads((runs.path / "a" / "run.json").read_bytes())["status"] == "running"
    with runs.open() as writer:
        assert writer.record.status == "running"


def test_a_run_that_ends_while_it_is_read_is_never_shown_as_interrupted(runs, monkeypatch):
    from dsabench.store import reader

    writer = runs.open()

    def finished_meanwhile(path):
        if writer.record.status == "running":
            writer.finish("done")
            writer.__exit__(None, None, None)
        return False

    monkeypatch.setattr(reader, "is_held", finished_meanwhile)
    assert read_run(runs.path, "a").status == "done"


def test_reading_changes_nothing(runs):
    runs.add("a")
    with runs.open("crashed") as writer:
        writer.metrics({"kind": "train", "step": 0})
        record = (writer.path / "run.json").read_bytes()
    (runs.path / "crashed" / "run.json").write_bytes(record)
    (runs.path / "crashed" / ".lock").unlink(missing_ok=True)
    before = tree(runs.path)
    assert read_run(runs.path, "crashed").status == "interrupted"
    find_run(runs.path, "a")
    load_metrics(runs.path)
    assert find_checkpoint(runs.path, "a") is None
    assert tree(runs.path) == before


def test_runs_are_found_by_a_unique_beginning(runs):
    for run_id in ("dsa-L64-s1-aaaa", "dsa-L64-s10-bbbb", "dense-L64-s1-cccc", "dsa-L64-s1"):
        runs.add(run_id)
    assert find_run(runs.path, "dense").run_id == "dense-L64-s1-cccc"
    assert find_run(runs.path, "dsa-L64-s1").run_id == "dsa-L64-s1"  # exact, though others start with it
    with pytest.raises(StoreError, match=r"'dsa'.*3 runs start with that: dsa-L64-s1, dsa-L64-s1-aaaa, dsa-L64-s10-"):
        find_run(runs.path, "dsa")
    with pytest.raises(StoreError, match=r"'nope'.*no run starts with that; there are: dense-L64-s1-cccc, "):
        find_run(runs.path, "nope")
    with pytest.raises(StoreError, match="no run store there"):
        find_run(runs.path / "elsewhere", "dsa")


@pytest.mark.parametrize(
    "run_id",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden", "-x", "a b", "a\n", "\u00e9", "a\0", "x" * 201],
)
def test_an_id_cannot_leave_the_store(runs, run_id):
    runs.add()
    before = tree(runs.path.parent)
    for call in (
        runs.open,
        lambda name: read_run(runs.path, name),
        lambda name: read_metrics(runs.path, name),
    ):
        with pytest.raises(StoreError, match=r"run id .*letters, digits"):
            call(run_id)
    assert tree(runs.path.parent) == before


@pytest.mark.parametrize("run_id", ["sweeps", "index.parquet", "store.json"])
def test_an_id_cannot_be_a_name_of_the_store_itself(runs, run_id):
    with pytest.raises(StoreError, match="choose another"):
        runs.open(run_id)


def test_a_run_that_cannot_begin_leaves_no_folder(runs, monkeypatch):
    with pytest.raises(TypeError, match="JSON values are accepted"):
        runs.open(environment={"path": Path()})
    assert not (runs.path / "a").exists()
    runs.add("a", status="failed")
    before = tree(runs.path / "a")
    with pytest.raises(TypeError):
        runs.open(environment={"path": Path()})
    assert tree(runs.path / "a") == before


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"val_loss": "low"}, "val_loss = 'low' is not a number"),
        ({"steps": 1.5}, "steps = 1.5 is not a whole number"),
        ({"steps": True}, "steps = True is not a whole number"),
        ({"flops": 10**400}, "beyond every float"),
        ({"leak": 1}, "leak = 1"),
        ({"status": "x"}, "status: the name is taken"),
    ],
)
def test_a_summary_fits_the_columns(summary, message):
    with pytest.raises(ValueError, match=message):
        RunRecord(run_id="a", status="done", spec={}, summary=summary)


def test_torch_is_not_imported():
    code = "import sys, dsabench.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
