"""Tables of a store: records as rows and columns, and the metrics of many runs in one table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dsabench.errors import StoreError
from dsabench.metrics import columns as metric_columns
from dsabench.metrics import recorded_epochs
from dsabench.plain import encodable
from dsabench.store.column_pieces import Piece, joined, nothing, piece
from dsabench.store.files import is_held, signature
from dsabench.store.layout import LOCK, RECORD, existing_store
from dsabench.store.reader import read_folder, read_metrics, run_names
from dsabench.store.recorded_floors import with_floors
from dsabench.store.records import DamagedError, RunRecord
from dsabench.store.verification import damage

TIME = "datetime64[us, UTC]"

_PART = 50
"""Runs whose metrics are in memory at a time, where those of all runs need not be."""

_DENSE = "dense-L"
"""Beginning of the id of a dense run; records of dsabench 0.1 say that its stage is `sparse`."""

DAMAGED = ("damaged", "unreadable")
"""Statuses of runs that cannot be believed: they are named, never judged, neither taken for done nor trained over."""

Row = dict[str, Any]

Array = pd.api.extensions.ExtensionArray | np.ndarray[Any, Any]
"""The values of a column."""


def fixed_columns() -> dict[str, str]:
    """The columns that are always there, with their pandas dtypes; the others follow in alphabetical order."""
    return {
        **dict.fromkeys(("run_id", "status", "attention"), "string"),
        **dict.fromkeys(("length", "seed"), "Int64"),
        **metric_columns(),
        "leak": "boolean",
        **dict.fromkeys(("sweep", "error"), "string"),
        **dict.fromkeys(("created", "updated"), TIME),
        "version": "string",
        "order": "Int64",
        "seal": "string",
    }


def row_of(folder: Path) -> tuple[Row, bool]:
    """The row of the run in `folder`, JSON values only, and whether it can change while run.json does not.

    A run that is not what was written, or whose parts contradict each other, has status `damaged`, and one that cannot
    be read `unreadable`; `error` says what is wrong.
    """
    record: RunRecord | None
    while True:
        seen = signature(folder / RECORD)
        try:
            record, may_change = read_folder(folder)
            wrong = [] if record.status == "running" else damage(folder, record)
        except DamagedError as error:
            record, may_change = error.record, False
            wrong = [str(error).removeprefix(f"run {folder.name}: ").replace(f"{folder}/", "")]
            if record is not None and record.run_id == folder.name:
                wrong += damage(folder, record)
        except StoreError as error:
            if not (folder / RECORD).exists() and is_held(folder / LOCK):
                return {"run_id": folder.name, "status": "running"}, True  # its writer is just beginning
            return {"run_id": folder.name, "status": "unreadable", "error": str(error)}, False
        except (OSError, RecursionError) as error:
            return {"run_id": folder.name, "status": "unreadable", "error": f"{folder}: {error}"}, False
        if not wrong or signature(folder / RECORD) == seen:  # else it was taken up again meanwhile
            break
    row = {} if record is None else _flat_record(record)
    row["seal"] = "unsealed" if record is not None and record.seal is None else "sealed"
    if wrong:
        row |= {"run_id": folder.name, "status": "damaged", "seal": "damaged"}
        # Without the place of the store: a report says the same wherever it lies.
        row["error"] = "; ".join(wrong).replace(f"{folder}/", "")
    return row, may_change


def _flat_record(record: RunRecord) -> Row:
    row: Row = {}
    flatten(record.environment, "environment.", row)
    flatten(record.fingerprint, "fingerprint.", row)
    flatten(record.spec, "", row)
    return (
        row
        | with_floors(record.summary, record.spec)
        | {
            "epochs": recorded_epochs(record.summary, record.environment),
            "run_id": record.run_id,
            "status": record.status,
            "attention": record.spec.get("attention", {}).get("kind"),
            "length": record.spec.get("length"),
            "seed": record.spec.get("seed"),
            "sweep": record.sweep,
            "error": record.error,
            "created": record.created.isoformat(),
            "updated": record.updated.isoformat(),
            "order": record.place,
            "version": record.version,
        }
    )


def flatten(value: Mapping[str, Any], prefix: str, row: Row) -> None:
    """Put the fields of `value` into `row` by their paths after `prefix`; lists and empty mappings as JSON text."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            flatten(inner, f"{prefix}{key}.", row)
        else:
            row[prefix + key] = json.dumps(inner) if isinstance(inner, dict | list) else inner


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """One row a run, sorted by run_id: fixed_columns, then all other fields with a fitting dtype."""
    ordered = sorted(rows, key=lambda row: str(row["run_id"]))
    fixed = fixed_columns()
    others = sorted({name for row in ordered for name in row} - fixed.keys())
    columns = {name: _fixed([row.get(name) for row in ordered], dtype) for name, dtype in fixed.items()}
    columns |= {encodable(name): typed([row.get(name) for row in ordered]) for name in others}
    return pd.DataFrame(columns)


def _fixed(values: list[Any], dtype: str) -> Array:
    if dtype == TIME:
        # Through NumPy: pandas 2 reads text as nanoseconds, which end in the year 2262.
        times = [value and datetime.fromisoformat(value).replace(tzinfo=None) for value in values]
        return pd.DatetimeIndex(np.array(times, dtype="datetime64[us]")).tz_localize("UTC").array
    if dtype == "string":
        values = [None if value is None else encodable(value) for value in values]
    return _array(values, dtype)


def typed(values: list[Any]) -> Array:
    """A column of JSON values in the narrowest dtype that holds all.

    boolean, Int64, float64 (NaN is missing), or string. In a column of several kinds, and for lists and
    mappings, a cell is the value's JSON text (a string is itself).
    """
    return _column(values, _dtype(_kinds(values)))


def _kinds(values: list[Any]) -> set[str]:
    """The names of the values' types; whole numbers too large for Int64 or for a float are kinds of their own."""
    kinds = {kind.__name__ for kind in set(map(type, values))} - {"NoneType"}
    if "int" in kinds:
        whole = [value for value in values if type(value) is int]
        for end in (min(whole), max(whole)):
            if not -(2**63) <= end < 2**63:
                try:
                    float(end)
                    kinds.add("large")
                except OverflowError:
                    kinds.add("beyond every float")
    return kinds


def _dtype(kinds: set[str]) -> str:
    if kinds in ({"bool"}, {"int"}):
        return "boolean" if "bool" in kinds else "Int64"
    return "float64" if kinds <= {"int", "large", "float"} else "string"


def _column(values: list[Any], dtype: str) -> Array:
    if dtype == "string":
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        values = [None if text is None else encodable(text) for text in texts]
    return _array(values, dtype)


def _array(values: list[Any], dtype: Any) -> Array:
    """The values of a column; a Series for each would take most of a table's time."""
    if dtype == "float64":
        return np.array([math.nan if value is None else float(value) for value in values], dtype="float64")
    column: Array = pd.array(values, dtype=dtype)
    return column


def load_metrics(store: str | Path = "runs", run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """The metrics of runs (all without `run_ids`) as one tidy table: run_id, kind, step, a column a metric.

    Rows are in the order they were recorded. A cell is missing (NaN in a float column) where the record has
    no such metric; `read_metrics` tells that from a recorded NaN. A torn last line is left out. What is recorded as a
    list, such as the loss by position, is in `load_lists`. `stage` is `dense` in every row of a dense run.

    Raises:
        StoreError: there is no such store or run, or a metrics file is damaged; names the file and line.
    """
    path = existing_store(store)
    names = list(run_names(path) if run_ids is None else run_ids)
    pieces: dict[str, list[Piece]] = {}
    found: dict[str, set[str]] = {}
    n = 0
    for i in range(0, len(names), _PART):  # the records of all runs would take several times the memory of the table
        records = _records(path, names[i : i + _PART])
        values = _values_of(records)
        for name in values:
            pieces.setdefault(name, [nothing(n)])
        for name, parts in pieces.items():
            if name in values:
                kinds = _kinds(values[name])
                parts.append(piece(values[name], kinds))
                found.setdefault(name, set()).update(kinds)
            else:
                parts.append(nothing(len(records)))
        n += len(records)
    return _frame({name: _whole(parts, _dtype(found[name])) for name, parts in pieces.items()}, n)


def load_lists(store: str | Path = "runs", run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """What runs (all without `run_ids`) recorded as lists, one row an item: run_id, kind, step, metric, place, value.

    `place` counts from 0. Of `loss_by_position` it is the bin: at most 256 equal parts of the window, so up to 256
    tokens each position is one. Of `target_recall_by_layer` it is the layer, of `loss_by_copy_distance` and
    `tokens_by_copy_distance` the bin: 0 has tokens that are no copy, i distances of 2^(i-1) to 2^i - 1. Of
    `loss_by_multiple` and `accuracy_by_multiple` it counts in train.eval_multiples. `value` is missing in a bin in
    which nothing was scored.

    Raises:
        StoreError: as `load_metrics`.
    """
    path = existing_store(store)
    rows: list[tuple[Any, ...]] = [
        (run_id, record["kind"], record["step"], name, place, item)
        for run_id in (run_names(path) if run_ids is None else run_ids)
        for record in read_metrics(path, run_id)
        for name, value in record.items()
        if isinstance(value, list)
        for place, item in enumerate(value)
    ]
    dtypes = {"run_id": "string", "kind": "string", "step": "Int64", "metric": "string", "place": "Int64"}
    columns = {name: [row[i] for row in rows] for i, name in enumerate([*dtypes, "value"])}
    found = {name: _column(columns[name], dtype) for name, dtype in dtypes.items()}
    return pd.DataFrame(found | {"value": typed(columns["value"]) if rows else _array([], "float64")})


def metrics_in_parts(store: str | Path, run_ids: Sequence[str]) -> Iterator[pd.DataFrame]:
    """`load_metrics` of these runs in parts of a few runs, with the same columns and dtypes; needs little memory.

    Files are read twice, because a column's dtype is known only when all were seen.

    Raises:
        StoreError: as `load_metrics`, or a run recorded something else meanwhile.
    """
    path = existing_store(store)
    parts = [run_ids[i : i + _PART] for i in range(0, len(run_ids), _PART)]
    found: dict[str, set[str]] = {}
    for part in parts:
        for name, values in _values_of(_records(path, part)).items():
            found.setdefault(name, set()).update(_kinds(values))
    dtypes = {name: _dtype(kinds) for name, kinds in found.items()}
    for part in parts:
        records = _records(path, part)
        there = _values_of(records)
        if any(not _kinds(values) <= found.get(name, set()) for name, values in there.items()):
            raise StoreError(f"{path}: a run wrote other metrics while they were read; try again")
        none = [None] * len(records)
        yield _frame({name: _column(there.get(name, none), dtype) for name, dtype in dtypes.items()}, len(records))


def _records(store: Path, run_ids: Iterable[str]) -> list[Row]:
    """The records without their lists."""
    rows = []
    for run_id in run_ids:
        for record in read_metrics(store, run_id):
            if list in map(type, record.values()):
                record = {name: value for name, value in record.items() if not isinstance(value, list)}
            record["run_id"] = run_id
            if "stage" in record and run_id.startswith(_DENSE):
                record["stage"] = "dense"
            rows.append(record)
    return rows


def _values_of(records: list[Row]) -> dict[str, list[Any]]:
    """{metric: its values, None where a record has none}, in the order in which metrics first occur."""
    names = dict.fromkeys(name for keys in dict.fromkeys(map(tuple, records)) for name in keys)
    return {name: [record.get(name) for record in records] for name in names}


def _whole(pieces: list[Piece], dtype: str) -> Array:
    column = joined(pieces, dtype)
    return _column([value for part in pieces for value in part.listed()], dtype) if column is None else column


def _frame(found: Mapping[str, Array], n: int) -> pd.DataFrame:
    """n rows with these columns, run_id, kind and step first."""
    columns = {encodable(name): column for name, column in found.items()}
    first = {"run_id": "string", "kind": "string", "step": "Int64"}
    missing = {name: _array([None] * n, dtype) for name, dtype in first.items() if name not in columns}
    return pd.DataFrame(columns | missing)[[*first, *(name for name in columns if name not in first)]]
