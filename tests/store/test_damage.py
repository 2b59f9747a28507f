"""Damaged files: told with their name, listed, never hidden, never a crash."""

import json
from contextlib import suppress

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsabench.errors import StoreError
from dsabench.store import load_metrics, load_runs, read_metrics, read_run
from dsabench.store.table import row_of

quick = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\x00", b"{", b"[1]", b"1", b"null", b"{}", b'{"step": 1}', b"", b"[" * 9999]
)
def test_a_damaged_line_is_named(runs, line):
    folder = runs.older(status="interrupted")
    path = folder / "metrics.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    for call in (lambda: load_metrics(runs.path), lambda: read_metrics(runs.path, "a"), runs.open):
        with pytest.raises(StoreError, match=r"runs/a/metrics\.jsonl, line 2: damaged"):
            call()
    assert list(load_runs(runs.path).status) == ["interrupted"]


def test_garbage_without_an_end_is_not_taken_for_a_torn_line(runs):
    path = runs.older(status="interrupted") / "metrics.jsonl"
    before = path.read_bytes() + b"\x89PNG\r"
    path.write_bytes(before)
    for call in (lambda: load_metrics(runs.path), runs.open):
        with pytest.raises(StoreError, match=r"metrics\.jsonl: damaged, ends in"):
            call()
    assert path.read_bytes() == before


@quick
@given(data=st.binary(max_size=200))
def test_any_bytes_as_metrics_are_read_or_refused(runs, data):
    if not runs.path.exists():
        runs.older(status="interrupted")
    (runs.path / "a" / "metrics.jsonl").write_bytes(data)
    with suppress(StoreError):  # and nothing else
        load_metrics(runs.path)


def test_lists_in_lists_without_end_are_refused(runs):
    path = runs.older() / "metrics.jsonl"
    for depth in (*range(300, 1100, 9), 5000, 200_000):
        path.write_text(f'{{"kind": "train", "step": 1, "x": {"[" * depth}{"]" * depth}}}\n')
        with suppress(StoreError):  # and no RecursionError
            load_metrics(runs.path)


def test_mappings_in_mappings_without_end_are_listed(runs):
    path = runs.older() / "run.json"
    start = path.read_text().split('"spec": {')[0]
    for depth in (*range(300, 1100, 9), 5000, 200_000):
        path.write_text(start + '"spec": {"x": ' + '{"y": ' * depth + "1" + "}" * depth + "}}")
        row, _ = row_of(path.parent)
        assert row["status"] == "done" or row["error"]
    assert list(load_runs(runs.path).status) == ["unreadable"]


def test_a_cut_run_json_is_told_wherever_it_was_cut(runs):
    path = runs.older() / "run.json"
    whole = path.read_bytes()
    for end in range(len(whole) - 1):  # the last byte is a newline
        path.write_bytes(whole[:end])
        with pytest.raises(StoreError, match=r"runs/a/run\.json: damaged"):
            read_run(runs.path, "a")
    frame = load_runs(runs.path)
    assert list(frame.status) == ["unreadable"]
    assert "run.json: damaged" in frame.error[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "run_id",
    "status",
    "schema_version",
    "spec",
    "summary",
    "fingerprint",
    "environment",
    "created",
    "error",
    "x",
)


@quick
@given(changes=st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=3), inner=st.booleans())
def test_any_json_as_run_json_is_a_row_and_the_index_holds_it(runs, changes, inner):
    if not runs.path.exists():
        runs.add("a")
        runs.add("good")
    path = runs.path / "a" / "run.json"
    record = json.loads((runs.path / "good" / "run.json").read_bytes()) | {"run_id": "a", "version": "0.2.0"}
    record.pop("seal")
    if inner:  # deeper: among the fields of the spec and of the summary
        record["spec"] |= {key: value for key, value in changes.items() if key in FIELDS[3:]}
        record["summary"] |= {f"m{key}": value for key, value in changes.items()}
    else:
        record |= changes
    path.write_text(json.dumps(record))
    frame = load_runs(runs.path).set_index("run_id")
    assert set(frame.index) == {"a", "good"}
    assert frame.status["good"] == "done"
    if frame.status["a"] == "unreadable":
        assert frame.error["a"]
    pd.testing.assert_frame_equal(pd.read_parquet(runs.path / "index.parquet").set_index("run_id"), frame)
