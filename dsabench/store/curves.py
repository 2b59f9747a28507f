"""`curves.parquet`: the records of all runs' training as one table, kept up to date by reading changed files alone.

A cache like `index.parquet`: it can be removed at any time. Its metadata name the version of each run's metrics.jsonl
that it was made from and compared with its seal. `load_metrics` reads the files themselves, with everything in them.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dsabench.errors import StoreError
from dsabench.plain import encodable
from dsabench.store.files import Signature, acquire, signature
from dsabench.store.layout import METRICS, RECORD, check_schema, existing_store
from dsabench.store.reader import run_names, sealed_metrics
from dsabench.store.record_values import odd_value
from dsabench.store.records import SCHEMA_VERSION, is_id
from dsabench.store.sealed_cache import read_sealed, write_sealed

CURVES = "curves.parquet"
_LOCK = ".curves.lock"
SEAL = ".curves.seal"
_KEY = b"dsabench"
_FORMAT = f"4 of schema {SCHEMA_VERSION}"

BY_POSITION = "loss_by_position"
COPIES, COPY_COUNTS = "loss_by_copy_distance", "tokens_by_copy_distance"

LISTS = (BY_POSITION, COPIES, COPY_COUNTS)
"""The lists that curves keep, of a run's last record alone, the evaluation at its end."""

_FIXED = {"run_id": pa.string(), "kind": pa.string(), "step": pa.int64(), "stage": pa.string()}


class Curves(NamedTuple):
    """The records of runs, and the runs whose records cannot be read."""

    frame: pd.DataFrame
    """run_id, step, stage and a float64 column a metric (NaN: missing, or recorded as NaN), by run_id and then in
    recorded order; those of LISTS are arrays in a finished run's last evaluation and missing elsewhere."""

    damaged: dict[str, str]
    """run_id -> what is wrong with its metrics file; such a run has no rows."""


def load_curves(
    store: str | Path,
    run_ids: Iterable[str] | None = None,
    kind: Literal["eval", "train"] = "eval",
    columns: Sequence[str] | None = None,
) -> Curves:
    """The evaluation or training records of runs (all without `run_ids`), numbers only; a torn last line is left out.

    Reads the cache, and the files of runs that changed since it was written; then brings the cache up to date when
    the store can be written. `columns` chooses metrics; those that no run recorded come back without values.

    Raises:
        StoreError: there is no such store, or a newer dsabench wrote it.
    """
    path = existing_store(store)
    there = {name for name in run_names(path) if is_id(name)}
    wanted = sorted(there if run_ids is None else there.intersection(run_ids))
    signatures = {name: _signature(path / name) for name in wanted}
    table, state = _read(path)
    stale = [name for name in wanted if name not in state.signatures or state.signatures[name] != signatures[name]]
    if stale:
        fresh, damaged = _parse(path, stale)
        kept = table.filter(pc.invert(pc.is_in(table["run_id"], pa.array(stale, pa.string()))))
        table = _ordered(pa.concat_tables([kept, fresh], promote_options="default"))
        state = _State(
            _FORMAT,
            table.column_names,
            {**state.signatures, **{name: signatures[name] for name in stale}},
            {**{name: why for name, why in state.damaged.items() if name not in stale}, **damaged},
        )
        _keep(path, table, state)
    # Compared as a filter, not row by row in pandas: most rows are of the other kind, or of other runs.
    rows = table.filter(
        pc.and_(pc.equal(table["kind"], kind), pc.is_in(table["run_id"], pa.array(wanted, pa.string())))
    )
    names = ["run_id", "step", "stage"]
    if columns is not None:
        names += columns
    else:  # the metrics of this kind of record
        names += [n for n in rows.column_names if n not in (*names, "kind") and rows[n].null_count < rows.num_rows]
    names = list(dict.fromkeys(names))
    present = [name for name in names if name in rows.column_names]
    frame = rows.select(present).to_pandas()
    for name in names:
        if name not in frame:
            frame[name] = pd.Series(float("nan"), index=frame.index, dtype="float64")
    return Curves(frame[names], {name: why for name, why in state.damaged.items() if name in set(wanted)})


def _signature(folder: Path) -> Signature:
    """That of a run's metrics, and of its record, whose seal decides whether they can be believed."""
    metrics = signature(folder / METRICS)
    return None if metrics is None else metrics + (signature(folder / RECORD) or [])


class _State(NamedTuple):
    """The metadata of the cache."""

    format: str
    columns: list[str]
    """Names of its columns."""

    signatures: dict[str, Signature]
    damaged: dict[str, str]


def _empty() -> pa.Table:
    return pa.schema(list(_FIXED.items())).empty_table()


def _ordered(table: pa.Table) -> pa.Table:
    """The table in the order that one made anew has."""
    names = [*_FIXED, *sorted(set(table.column_names) - set(_FIXED))]
    return table.select(names).take(pc.sort_indices(table["run_id"]))  # a stable sort


def _read(store: Path) -> tuple[pa.Table, _State]:
    nothing = _empty(), _State(_FORMAT, [], {}, {})
    try:
        table = pq.read_table(io.BytesIO(read_sealed(store, SEAL, CURVES)))
        state = _State(**json.loads((table.schema.metadata or {})[_KEY]))
        whole = state.format == _FORMAT and state.columns == table.column_names
        # Only a table of these types can be joined with what is read anew.
        types = {field.name: field.type for field in table.schema}
        whole = whole and all(
            kind == _FIXED.get(name, pa.list_(pa.float64()) if name in LISTS else pa.float64())
            for name, kind in types.items()
        )
        whole = whole and types.keys() >= _FIXED.keys() and isinstance(state.signatures, dict)
        whole = whole and all(isinstance(why, str) for why in state.damaged.values())
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, AttributeError):
        return nothing
    return (table.replace_schema_metadata(None), state) if whole else nothing


def _keep(store: Path, table: pa.Table, state: _State) -> None:
    """Write the cache, unless the store cannot be written or another process is writing it; the next reader will."""
    try:
        if not check_schema(store) or not os.access(store, os.W_OK):
            return
        lock = acquire(store / _LOCK, 0)
        if lock is None:
            return
        try:
            there = set(run_names(store))
            gone = [name for name in state.signatures if name not in there]
            if gone:
                table = table.filter(pc.invert(pc.is_in(table["run_id"], pa.array(gone, pa.string()))))
            state = state._replace(
                signatures={name: known for name, known in state.signatures.items() if name in there},
                damaged={name: why for name, why in state.damaged.items() if name in there},
            )
            buffer = io.BytesIO()
            metadata = {_KEY: json.dumps(state._asdict()).encode()}
            pq.write_table(table.replace_schema_metadata(metadata), buffer, write_page_checksum=True)
            write_sealed(store, SEAL, {CURVES: buffer.getvalue()})
        finally:
            lock.release()
    except StoreError:
        return  # full or read-only: it is only a cache, and what is returned is right without it


def _parse(store: Path, run_ids: list[str]) -> tuple[pa.Table, dict[str, str]]:
    values: dict[str, list[Any]] = {name: [] for name in _FIXED}  # run by run: records of all would need much memory
    damaged: dict[str, str] = {}
    for run_id in run_ids:
        path = store / run_id / METRICS
        try:
            found = sealed_metrics(store / run_id, lists=False)
        except StoreError as error:
            damaged[run_id] = str(error)
            continue
        found = [record for record in found if record["kind"] in ("eval", "train")]
        if odd := odd_value(found):
            damaged[run_id] = f"{path}: damaged, {odd}"
            continue
        before = len(values["run_id"])
        for name in {name for keys in set(map(tuple, found)) for name in keys} - {"run_id"}:
            column = values.setdefault(name, [])
            column += [None] * (before - len(column))
            column += [record.get(name) for record in found]
        values["run_id"] += [run_id] * len(found)
    n = len(values["run_id"])
    columns = {}
    for name, column in values.items():
        column += [None] * (n - len(column))
        if name == "stage":
            column = [_text(value) for value in column]
        if name in _FIXED:
            columns[name] = pa.array(column, _FIXED[name])
        elif name in LISTS:
            columns[name] = pa.array([_numbers(value) for value in column], pa.list_(pa.float64()))
        elif (numbers := _column(column)) is not None:
            columns[_text(name)] = numbers
    return pa.table(columns) if n else _empty(), damaged


def _column(values: list[Any]) -> pa.Array | None:
    """The numbers of a metric, null where a value is none; None when no value is one."""
    numbers = None
    with suppress(pa.ArrowException, OverflowError, TypeError):  # something else among them
        numbers = pa.array(values, pa.float64()) if bool not in set(map(type, values)) else None
    if numbers is None:
        numbers = pa.array([float(value) if _is_number(value) else None for value in values], pa.float64())
    return numbers if numbers.null_count < len(numbers) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000)


def _numbers(value: Any) -> list[float] | None:
    """A list of numbers; null among them, of a position at which nothing was scored, is NaN."""
    if not isinstance(value, list) or not all(item is None or _is_number(item) for item in value):
        return None
    return [math.nan if item is None else float(item) for item in value]


def _text(value: Any) -> Any:
    """`encodable` text; None for what is no text."""
    return encodable(value) if isinstance(value, str) else None
