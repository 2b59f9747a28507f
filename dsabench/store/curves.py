"""`curves.parquet`: what runs recorded while they trained, as one table, kept by reading only files that changed.

A cache like `index.parquet`: it can be removed at any time. Its metadata say which version of each run's
metrics.jsonl it shows. `load_metrics` reads the files themselves, with everything that is in them.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dsabench.errors import StoreError
from dsabench.store.files import Signature, acquire, explained, signature, write_atomic
from dsabench.store.layout import METRICS, check_schema, existing_store
from dsabench.store.reader import parse_metrics, run_names
from dsabench.store.records import SCHEMA_VERSION

CURVES = "curves.parquet"
_LOCK = ".curves.lock"
_KEY = b"dsabench"
_FORMAT = f"1 of schema {SCHEMA_VERSION}"

BY_POSITION = "loss_by_position"
"""The one column that holds lists; only in a run's last record, the evaluation at its end."""

_FIXED = {"run_id": pa.string(), "kind": pa.string(), "step": pa.int64(), "stage": pa.string()}


class Curves(NamedTuple):
    """The records of runs, and the runs whose records cannot be read."""

    frame: pd.DataFrame
    """run_id, step, stage and a float64 column a metric (NaN: missing, or recorded as NaN), in recorded order;
    loss_by_position is a list in a finished run's last evaluation and missing elsewhere."""

    damaged: dict[str, str]
    """run_id -> what is wrong with its metrics file; such a run has no rows."""


def load_curves(
    store: str | Path,
    run_ids: Iterable[str] | None = None,
    kind: Literal["eval", "train"] = "eval",
    columns: Sequence[str] | None = None,
) -> Curves:
    """The evaluation or training records of runs (all without `run_ids`), numbers only; a torn last line is left out.

    Reads the cache, and of the runs that changed since it was written their files; then brings it up to date when
    the store can be written. `columns` chooses metrics; those that no run recorded come back without values.

    Raises:
        StoreError: there is no such store, or a newer dsabench wrote it.
    """
    path = existing_store(store)
    wanted = sorted(set(run_names(path) if run_ids is None else run_ids))
    signatures = {name: signature(path / name / METRICS) for name in wanted}
    table, state = _read(path)
    stale = [name for name in wanted if name not in state.signatures or state.signatures[name] != signatures[name]]
    if stale:
        fresh, damaged = _parse(path, stale)
        kept = table.filter(pc.invert(pc.is_in(table["run_id"], pa.array(stale, pa.string()))))
        table = pa.concat_tables([kept, fresh], promote_options="default")
        state = _State(
            _FORMAT,
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
    present = [name for name in dict.fromkeys(names) if name in rows.column_names]
    frame = rows.select(present).to_pandas()
    for name in names:
        if name not in frame:
            frame[name] = pd.Series(float("nan"), index=frame.index, dtype="float64")
    return Curves(frame[names], {name: why for name, why in state.damaged.items() if name in set(wanted)})


class _State(NamedTuple):
    """What the parquet's metadata say of it."""

    format: str
    signatures: dict[str, Signature]
    damaged: dict[str, str]


def _empty() -> pa.Table:
    return pa.schema(list(_FIXED.items())).empty_table()


def _read(store: Path) -> tuple[pa.Table, _State]:
    nothing = _empty(), _State(_FORMAT, {}, {})
    try:
        with explained(store / CURVES):
            table = pq.read_table(io.BytesIO((store / CURVES).read_bytes()), page_checksum_verification=True)
        state = _State(**json.loads((table.schema.metadata or {})[_KEY]))
    except (StoreError, pa.ArrowException, KeyError, ValueError, TypeError):
        return nothing
    return (table.replace_schema_metadata(None), state) if state.format == _FORMAT else nothing


def _keep(store: Path, table: pa.Table, state: _State) -> None:
    """Write the cache, if this is a store that can be written and nobody else is at it; else the next reader does."""
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
            write_atomic(store / CURVES, buffer.getvalue())
        finally:
            lock.release()
    except StoreError:
        return  # full or read-only: it is only a cache, and what is returned is right without it


def _parse(store: Path, run_ids: list[str]) -> tuple[pa.Table, dict[str, str]]:
    records: list[dict[str, Any]] = []
    damaged: dict[str, str] = {}
    for run_id in run_ids:
        try:
            found, _ = parse_metrics(store / run_id / METRICS, lists=False)
        except StoreError as error:
            damaged[run_id] = str(error)
            continue
        records += [{**record, "run_id": run_id} for record in found if record["kind"] in ("eval", "train")]
    names = dict.fromkeys(name for keys in dict.fromkeys(tuple(record) for record in records) for name in keys)
    columns = {
        "run_id": pa.array([record["run_id"] for record in records], pa.string()),
        "kind": pa.array([record["kind"] for record in records], pa.string()),
        "step": pa.array([record["step"] for record in records], pa.int64()),
        "stage": pa.array([_text(record.get("stage")) for record in records], pa.string()),
    }
    for name in names:
        values = [record.get(name) for record in records]
        if name == BY_POSITION:
            columns[name] = pa.array([_numbers(value) for value in values], pa.list_(pa.float64()))
        elif name not in _FIXED and (numbers := _column(values)) is not None:
            columns[name] = numbers
    return pa.table(columns) if records else _empty(), damaged


def _column(values: list[Any]) -> pa.Array | None:
    """The numbers of a metric, null where a value is none; None when no value is one."""
    try:
        numbers = pa.array(values, pa.float64())
    except (pa.ArrowException, OverflowError, TypeError):  # something else among them
        numbers = pa.array([float(value) if _is_number(value) else None for value in values], pa.float64())
    return numbers if numbers.null_count < len(numbers) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000)


def _numbers(value: Any) -> list[float] | None:
    if not isinstance(value, list) or not all(_is_number(item) for item in value):
        return None
    return [float(item) for item in value]


def _text(value: Any) -> str | None:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else None
