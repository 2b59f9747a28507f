"""The table of metrics is that of a plain, slow way to make it: values, dtypes, order of rows and columns, damage."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dsabench.errors import StoreError
from dsabench.plain import encodable
from dsabench.store import load_metrics, metrics_in_parts, reader, table

NAMES = st.sampled_from(["val_loss", "stage", "note", "z\u00e9", "\ud800", "\\ud800", "run_id", "flag"])
NUMBERS = st.integers(-(2**70), 2**70) | st.sampled_from([10**400, -(10**400), 2**63, -(2**63)]) | st.floats()
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | NUMBERS
    | st.text(max_size=3)
    | st.sampled_from(["\ud800", "", "dense"])
    | st.lists(NUMBERS, max_size=2)
    | st.dictionaries(st.text(max_size=2), NUMBERS, max_size=1)
)
# Of one kind mostly, so that narrow dtypes are met and not text alone.
COLUMNS = st.sampled_from(
    [st.none() | st.booleans(), st.none() | st.integers(-9, 9), st.none() | st.floats(), st.text(max_size=2), VALUES]
).flatmap(lambda values: st.dictionaries(NAMES, values, max_size=4))
STORES = st.lists(
    st.lists(st.tuples(st.sampled_from(["train", "eval"]), st.integers(0, 9), COLUMNS), max_size=3),
    min_size=1,
    max_size=5,
)
IDS = ["dense-L8-s1-0", "dsa-L8-s1-0", "c", "d", "e"]


def column(values: list[Any]) -> Any:
    """A column of JSON values in the narrowest dtype that holds all: as `typed` says, value by value."""
    there = [value for value in values if value is not None]

    def holds(test: Callable[[Any], bool]) -> bool:
        return bool(there) and all(map(test, there))

    def is_float(value: Any) -> bool:
        try:
            return type(value) in (int, float) and isinstance(float(value), float)
        except OverflowError:
            return False

    if holds(lambda v: type(v) is bool):
        return pd.array(values, dtype="boolean")
    if holds(lambda v: type(v) is int and -(2**63) <= v < 2**63):
        return pd.array(values, dtype="Int64")
    if not there or holds(is_float):
        return pd.array([math.nan if v is None else float(v) for v in values], dtype="float64").to_numpy()
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pd.array([v if v is None else encodable(v) for v in texts], dtype="string")


def slow(store: Path, run_ids: list[str]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for run_id in run_ids:
        for line in (store / run_id / "metrics.jsonl").read_bytes().splitlines():
            row = {name: value for name, value in json.loads(line).items() if not isinstance(value, list)}
            row["run_id"] = run_id
            if "stage" in row and run_id.startswith("dense-L"):
                row["stage"] = "dense"
            rows.append(row)
    first = ["run_id", "kind", "step"]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {encodable(name): column([row.get(name) for row in rows]) for name in names}
    if not rows:
        columns = {name: pd.array([], "Int64" if name == "step" else "string") for name in first}
    return pd.DataFrame(columns)[[*first, *(name for name in columns if name not in first)]]


def written(store: Path, recorded: list[Any]) -> list[str]:
    """A store with these records, which were perhaps not written by a RunWriter; its runs."""
    shutil.rmtree(store, ignore_errors=True)
    for run_id, records in zip(IDS, recorded, strict=False):
        (store / run_id).mkdir(parents=True)
        (store / run_id / ".lock").touch()
        lines = [json.dumps({**values, "kind": kind, "step": step}) + "\n" for kind, step, values in records]
        (store / run_id / "metrics.jsonl").write_text("".join(lines), encoding="ascii")
    return IDS[: len(recorded)]


@pytest.mark.parametrize("part", [1, 2, 50])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recorded=STORES)
@example(recorded=[[("eval", 1, {"note": math.nan})], [("eval", 1, {"note": None})], [("eval", 1, {"note": "text"})]])
@example(recorded=[[("eval", 1, {"note": 1})], [], [("eval", 1, {"note": None})], [("eval", 1, {})]])
@example(recorded=[[("eval", 1, {"note": True})], [("eval", 1, {})], [("eval", 1, {"flag": 2**70, "note": None})]])
def test_the_table_is_the_slow_one(part: int, tmp_path: Path, recorded: list[Any]) -> None:
    runs = written(tmp_path / "runs", recorded)
    before, table._PART = table._PART, part
    try:
        found, parts = load_metrics(tmp_path / "runs", runs), list(metrics_in_parts(tmp_path / "runs", runs))
    finally:
        table._PART = before
    expected = slow(tmp_path / "runs", runs)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), expected, check_exact=True)


RECORD = b'{"kind": "eval", "step": 1, "x": [1, {"y": 2}]}'
LINES = st.sampled_from(
    [RECORD, RECORD + b" ", b" " + RECORD, RECORD[:-1], b"}", b"", RECORD + b"\r", RECORD + b"," + RECORD, b"1]}",
     RECORD + RECORD, b'{"kind": "eval", "step": 1, "x": [1,', b"2]}", b'{"kind": "eval", "step": true}', b"[]", b"NaN",
     b'{"kind": "eval", "step": 1, "x": "\xc3\xa9"}', b"\xef\xbb\xbf" + RECORD, RECORD.decode().encode("utf-16-be"),
     b'{"kind": "eval", "step": 1, "x": NaN}', b'{"kind": "eval", "step": 1,\t"x": "\t"}', b"[" * 10**5, b"\0"]
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.just(RECORD) | LINES, max_size=5), tail=st.sampled_from([b"", b"{", b"\0\0", b"x"]))
@example(lines=[RECORD, b'{"kind": "eval", "step": 1, "x": [1,', b"2]}"], tail=b"")
@example(lines=[RECORD + RECORD], tail=b"")
def test_lines_read_in_turn_are_those_read_one_by_one(tmp_path: Path, lines: list[bytes], tail: bytes) -> None:
    """The same records, and the same words for damage."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + tail)

    def told() -> Any:
        try:
            return repr(reader.parse_metrics(path))
        except StoreError as error:
            return str(error)

    found = told()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_in_turn", lambda text, n: None)
        assert found == told()
