"""The cached curves: never anything but a faster way to what the metrics files say."""

import json
import math
import os
import shutil
import threading
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from curve_tools import assert_same, line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsabench.store import curves, load_curves, load_metrics, read_metrics

KINDS = ("eval", "train")


def rebuilt(store: Path, kind="eval", run_ids=None):
    (store / "curves.parquet").unlink(missing_ok=True)
    return load_curves(store, run_ids, kind)


def expected(store: Path, run_ids, kind):
    """What load_curves owes, from the records as `read_metrics` gives them."""
    records = [{**r, "run_id": run} for run in sorted(run_ids) for r in read_metrics(store, run) if r["kind"] == kind]
    rows = []
    for record in records:
        numbers = {
            n: float(v) for n, v in record.items() if type(v) in (int, float) and (type(v) is float or v < 2**63)
        }
        rows.append({**numbers, **{n: record.get(n) for n in ("run_id", "step", "stage")}})
    names = sorted({name for row in rows for name in row} - {"run_id", "step", "stage"})
    return rows, names


values = st.sampled_from(
    [
        None,
        0.5,
        -3,
        2**62 + 1,
        10**400,
        math.nan,
        math.inf,
        -math.inf,
        True,
        "text",
        "a: [1",
        [1.0],
        [[1], [2]],
        {"x": [1]},
    ]
)
records = st.builds(
    lambda kind, step, metrics: {"kind": kind, "step": step, **metrics},
    st.sampled_from(["eval", "train", "note"]),
    st.integers(0, 3),
    st.dictionaries(
        st.sampled_from(["loss", "kl", "stage", "loss_by_position", "z\u00e9", "\ud800"]), values, max_size=4
    ),
)
actions = st.one_of(
    st.tuples(st.just("append"), st.sampled_from("abc"), st.lists(records, min_size=1, max_size=3)),
    st.tuples(st.just("rewrite"), st.sampled_from("abc"), st.lists(records, max_size=3)),
    st.tuples(st.sampled_from(["torn", "cut", "remove", "lose", "damage"]), st.sampled_from("abc")),
    st.tuples(st.just("look"), st.sampled_from("abc")),
)


def act(store: Path, action: str, run: str, new=()) -> None:
    folder = store / run
    file = folder / "metrics.jsonl"
    lines = b"".join(json.dumps(record).encode("ascii") + b"\n" for record in new)
    if action == "look":
        load_curves(store, None if run == "a" else [run, "b"])
    elif action in ("append", "rewrite"):
        folder.mkdir(exist_ok=True)
        (folder / ".lock").touch()
        with file.open("ab" if action == "append" else "wb") as out:
            out.write(lines)
    elif action == "remove":
        shutil.rmtree(folder, ignore_errors=True)
    elif file.exists():
        if action == "torn":
            with file.open("ab") as out:
                out.write(b'{"kind": "eval", "st')
        elif action == "cut":  # as resuming does
            kept = file.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[0]
            file.write_bytes(kept + b"\n" * bool(kept))
        elif action == "lose":
            file.unlink()
        else:
            file.write_bytes(b"no record\n" + file.read_bytes())


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(actions, min_size=1, max_size=8))
def test_the_cache_equals_a_fresh_parse_whatever_happened(runs, steps):
    shutil.rmtree(runs.path, ignore_errors=True)
    runs.older("first")
    for action, *arguments in steps:
        act(runs.path, action, *arguments)
    for kind in KINDS:
        cached, again = load_curves(runs.path, kind=kind), load_curves(runs.path, kind=kind)
        assert_same(again, cached)
        assert_same(rebuilt(runs.path, kind), cached)
        healthy = {p.name for p in runs.path.iterdir() if (p / ".lock").exists()} - cached.damaged.keys()
        rows, names = expected(runs.path, healthy, kind)
        names = sorted(n.encode(errors="backslashreplace").decode() for n in names)
        found = cached.frame.drop(columns="loss_by_position", errors="ignore")
        assert list(found) == ["run_id", "step", "stage", *[n for n in names if n != "loss_by_position"]]
        assert len(found) == len(rows)
        for got, row in zip(found.to_dict("records"), rows, strict=True):
            assert (got["run_id"], got["step"]) == (row["run_id"], row["step"])
            assert got["stage"] == row["stage"] if isinstance(row["stage"], str) else pd.isna(got["stage"])
            for name in {n for n in row if n not in ("run_id", "step", "stage", "loss_by_position")}:
                cell = got[name.encode(errors="backslashreplace").decode()]
                assert cell == row[name] or (math.isnan(cell) and math.isnan(row[name]))


def test_a_torn_line_is_left_out_and_an_unfinished_append_is_caught_up(runs):
    file = runs.older() / "metrics.jsonl"
    file.write_bytes(line(step=0, val_loss=3.0) + line(step=1, val_loss=2.0)[:-9])
    assert load_curves(runs.path).frame.val_loss.tolist() == [3.0]
    file.write_bytes(line(step=0, val_loss=3.0) + line(step=1, val_loss=2.0))
    assert load_curves(runs.path).frame.val_loss.tolist() == [3.0, 2.0]


def test_a_damaged_file_is_reported_and_the_other_runs_are_there(runs):
    for name in "ab":
        (runs.older(name) / "metrics.jsonl").write_bytes(line(val_loss=3.0))
    (runs.path / "a/metrics.jsonl").write_bytes(line(val_loss=3.0) + b"rubbish\n" + line(val_loss=2.0))
    for _ in range(2):  # parsed, then from the cache
        found = load_curves(runs.path)
        assert found.frame.run_id.tolist() == ["b"]
        assert list(found.damaged) == ["a"]
        assert "a/metrics.jsonl, line 2: damaged" in found.damaged["a"]
        assert load_curves(runs.path, ["b"]).damaged == {}
    (runs.path / "a/metrics.jsonl").write_bytes(line(val_loss=1.0))
    assert load_curves(runs.path).damaged == {}
    assert load_curves(runs.path).frame.val_loss.tolist() == [1.0, 3.0]


def test_a_step_beyond_64_bits_is_damage_and_no_crash(runs):
    (runs.older() / "metrics.jsonl").write_bytes(line(step=10**30, val_loss=3.0))
    found = load_curves(runs.path)
    assert found.frame.empty
    assert "step = 1000000" in found.damaged["a"]


def test_nan_and_infinities_stay_and_what_is_no_number_is_missing(runs):
    file = runs.older() / "metrics.jsonl"
    kinds = [math.nan, math.inf, -math.inf, 3, 2**60 + 1, True, "3", None, [3.0], {"a": 3}, 10**400]
    file.write_bytes(b"".join(line(step=i, other=value, note="x") for i, value in enumerate(kinds)))
    frame = load_curves(runs.path).frame
    assert frame.other.dtype == "float64"
    assert [str(v) for v in frame.other] == ["nan", "inf", "-inf", "3.0", str(float(2**60 + 1)), *["nan"] * 6]
    assert list(frame) == ["run_id", "step", "stage", "other"], "a metric without a number is no column"


def test_a_metric_that_is_true_or_false_is_no_number(runs):
    (runs.older() / "metrics.jsonl").write_bytes(line(step=0, ok=True, half=True) + line(step=1, ok=False, half=0.5))
    frame = load_curves(runs.path).frame
    assert list(frame) == ["run_id", "step", "stage", "half"]
    assert [str(v) for v in frame.half] == ["nan", "0.5"]


@pytest.mark.parametrize("text", ["x: [1", 'x": [1', 'x\\": [1', ', "x": [1', "[", "]", "x: [1]"])
def test_a_text_with_brackets_hides_no_number_beside_it(runs, text):
    first = line(step=0, kl=1.0, note=text, val_loss=3.0, deep=[3], after=4.0)
    (runs.older() / "metrics.jsonl").write_bytes(first + line(step=1, val_loss=2.0))
    found = load_curves(runs.path)
    assert found.damaged == {}
    assert found.frame.loc[0, ["kl", "val_loss", "after"]].tolist() == [1.0, 3.0, 4.0]


def test_text_that_looks_like_a_list_and_lists_in_lists_do_not_break_a_line(runs):
    first = line(step=0, note="x: [1]", deep=[[1, 2], [3]], inner={"a": [1]}, words=["a: [", "b"], val_loss=3.0)
    (runs.older() / "metrics.jsonl").write_bytes(first + line(step=1, val_loss=2.0))
    found = load_curves(runs.path)
    assert found.damaged == {}
    assert found.frame.val_loss.tolist() == [3.0, 2.0]


def test_the_position_curve_is_kept_of_the_last_record(runs):
    rows = [line(step=i, val_loss=3.0, loss_by_position=[1, 2.5, math.nan]) for i in range(3)]
    (runs.older() / "metrics.jsonl").write_bytes(b"".join(rows))
    column = load_curves(runs.path, columns=["loss_by_position"]).frame.loss_by_position
    assert column[:2].isna().all()
    assert [str(v) for v in column[2]] == ["1.0", "2.5", "nan"]


def test_the_numbers_are_those_of_load_metrics(runs):
    for name in "ab":
        with runs.open(name) as writer:
            for step in range(5):
                writer.metrics({"kind": KINDS[step % 2], "step": step, "loss": 1 / (step + 3), "count": step})
            writer.finish("done", runs.SUMMARY)
    tidy = load_metrics(runs.path)
    for kind in KINDS:
        mine = load_curves(runs.path, kind=kind).frame
        theirs = tidy[tidy.kind == kind].reset_index(drop=True)
        assert mine.run_id.tolist() == theirs.run_id.tolist()
        for name in ("step", "loss", "count"):
            assert mine[name].tolist() == theirs[name].tolist()


def test_columns_choose_and_a_missing_one_comes_back_without_values(runs):
    (runs.older() / "metrics.jsonl").write_bytes(line(val_loss=3.0, kl=1.0))
    frame = load_curves(runs.path, columns=["kl", "step", "nowhere", "kl"]).frame
    assert list(frame) == ["run_id", "step", "stage", "kl", "nowhere"]
    assert frame.nowhere.isna().all() and frame.nowhere.dtype == "float64"
    empty = load_curves(runs.path, kind="train", columns=["kl"]).frame
    assert list(empty) == ["run_id", "step", "stage", "kl"] and empty.empty


def test_only_changed_files_are_read(runs, monkeypatch):
    for name in "abc":
        runs.older(name)
    load_curves(runs.path)
    read = []
    real = curves.sealed_metrics
    monkeypatch.setattr(curves, "sealed_metrics", lambda p, **k: read.append(p.name) or real(p, **k))
    load_curves(runs.path)
    assert read == []
    with (runs.path / "b/metrics.jsonl").open("ab") as file:
        file.write(line())
    load_curves(runs.path, ["b"])
    shutil.rmtree(runs.path / "a")
    load_curves(runs.path)
    assert read == ["b"]


def test_ids_that_are_no_run_have_no_rows_and_do_not_spoil_the_cache(runs, monkeypatch):
    (runs.older() / "metrics.jsonl").write_bytes(line(val_loss=3.0))
    outside = runs.path.parent / "outside"
    outside.mkdir()
    (outside / "metrics.jsonl").write_bytes(line(val_loss=9.0))
    (outside / ".lock").touch()
    (runs.path / "no id").mkdir()
    (runs.path / "no id/.lock").touch()
    load_curves(runs.path)
    monkeypatch.setattr(curves, "_keep", lambda *a: pytest.fail("the cache is as it was"))
    found = load_curves(runs.path, ["a", "../outside", "gone", "no id", ""])
    assert found.frame.run_id.tolist() == ["a"]
    assert found.damaged == {}


def test_a_folder_whose_name_is_no_text_is_no_run(runs):
    (runs.older() / "metrics.jsonl").write_bytes(line(val_loss=3.0))
    bad = os.fsencode(runs.path) + b"/bad\xff"
    try:
        os.mkdir(bad)  # noqa: PTH102 (bytes)
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    for name in (b"/.lock", b"/metrics.jsonl"):
        Path(os.fsdecode(bad + name)).write_bytes(line(val_loss=9.0) if b"metrics" in name else b"")
    for _ in range(2):
        assert load_curves(runs.path).frame.run_id.tolist() == ["a"]


def test_the_rows_of_a_removed_run_leave_the_cache(runs):
    for name in "ab":
        (runs.older(name) / "metrics.jsonl").write_bytes(line(val_loss=3.0))
    load_curves(runs.path)
    shutil.rmtree(runs.path / "a")
    with (runs.path / "b/metrics.jsonl").open("ab") as file:
        file.write(line(step=1, val_loss=2.0))
    load_curves(runs.path)
    assert set(pq.read_table(runs.path / "curves.parquet")["run_id"].to_pylist()) == {"b"}


def test_readers_at_the_same_time_as_a_writer_see_a_beginning_of_each_curve(runs):
    for name in "ab":
        runs.older(name)
        (runs.path / name / "metrics.jsonl").write_bytes(b"")
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                frame = load_curves(runs.path).frame
                for _, of_one in frame.groupby("run_id"):
                    assert of_one.step.tolist() == list(range(len(of_one)))
            except Exception as error:
                wrong.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for step in range(40):
        for name in "ab":
            with (runs.path / name / "metrics.jsonl").open("ab") as file:
                file.write(line(step=step, val_loss=3.0))
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    last = load_curves(runs.path)
    assert len(last.frame) == 80
    assert_same(rebuilt(runs.path), last)
