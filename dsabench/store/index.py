"""`index.parquet`: the whole store as one table, kept up to date by reading only what changed.

Two files. `index.parquet` is for everyone; its metadata say of each run which version of run.json it shows.
The rows it was made from are in `.index.json.gz`, so that an update has the exact values (a column's dtype
depends on all of them) without reading every run.json again. A token ties the two: a kill between their
writes shows, and both are rebuilt.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dsabench.errors import StoreError
from dsabench.store.files import Signature, explained, read_regular, signature, write_atomic
from dsabench.store.layout import RECORD, check_schema, existing_store, locked
from dsabench.store.reader import run_names
from dsabench.store.records import SCHEMA_VERSION
from dsabench.store.table import COLUMNS, Row, row_of, table

INDEX = "index.parquet"
_ROWS = ".index.json.gz"
_KEY = b"dsabench"
_FORMAT = f"2 of schema {SCHEMA_VERSION}"


class _State(NamedTuple):
    """What the parquet's metadata say of it."""

    format: str
    token: str
    signatures: dict[str, Signature]
    unsettled: dict[str, list[str | None]]
    """Status and error of the runs whose row can change without their file: a process may be killed."""


def load_runs(store: str | Path = "runs") -> pd.DataFrame:
    """Every run of the store, one row each, sorted by run_id.

    Columns: those of `table.COLUMNS`, always; every spec field by its path (`train.learning_rate`);
    `fingerprint.*` and `environment.*`; and any further metric. dtypes: string, Int64, boolean, float64
    (NaN is missing or recorded as NaN), datetime64[us, UTC]; see `table.typed`. `status` is running, done,
    failed, interrupted (a crashed run too), or unreadable, and then `error` says what is wrong with the
    run's record.

    Reads `index.parquet` when it is up to date, else brings it up to date when the store can be written.

    Raises:
        StoreError: there is no such folder, or a newer dsabench wrote it.
    """
    path = existing_store(store)
    cached = _read_index(path)
    if cached is not None and _is_fresh(path, cached[1]):
        return cached[0]
    # Only a store is written to: a reader pointed at some other folder leaves nothing there.
    if check_schema(path) and os.access(path, os.W_OK):
        try:
            return _update_locked(path, timeout_s=5)
        except StoreError:
            pass  # busy, full or read-only: the index is only a cache, what is returned is right without it
    return _current(path)[0]


def update(store: Path) -> None:
    """Bring `index.parquet` up to date with every run.json, reading those that changed.

    Raises:
        StoreError: it cannot be written.
    """
    _update_locked(store, timeout_s=120)


def _update_locked(store: Path, timeout_s: float) -> pd.DataFrame:
    with locked(store, timeout_s):
        # The runs are looked at under the lock, or an older view could replace a newer one.
        frame, rows, signatures, unsettled = _current(store)
        _write_index(store, frame, rows, signatures, unsettled)
        return frame


def _scan(store: Path) -> dict[str, Signature]:
    """The signature of every run's run.json, by stat calls alone."""
    return {name: signature(store / name / RECORD) for name in run_names(store)}


_Rows = tuple[dict[str, Row], dict[str, Signature], dict[str, list[str | None]]]


def _current(store: Path) -> tuple[pd.DataFrame, dict[str, Row], dict[str, Signature], dict[str, list[str | None]]]:
    """The table of every run, and what `_current_rows` gives."""
    cached = _read_rows(store)
    if cached is not None:
        with suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):  # no rows of ours: made anew
            rows, signatures, unsettled = _current_rows(store, cached)
            return table(rows.values()), rows, signatures, unsettled
    rows, signatures, unsettled = _current_rows(store, None)
    return table(rows.values()), rows, signatures, unsettled


def _current_rows(store: Path, cached: tuple[dict[str, Row], _State] | None) -> _Rows:
    """Every run's row and signature as they are, and the unsettled runs; cached rows where none changed."""
    # Signatures first: a run.json that is replaced in between then looks stale next time, not fresh for ever.
    signatures = _scan(store)
    rows: dict[str, Row] = {}
    unsettled: dict[str, list[str | None]] = {}
    old_rows, old = cached if cached is not None else ({}, None)
    for name, seen in signatures.items():
        if old and seen and name in old_rows and name not in old.unsettled and old.signatures[name] == seen:
            rows[name] = old_rows[name]
            continue
        rows[name], may_change = row_of(store / name)
        if may_change or seen is None:
            unsettled[name] = [rows[name]["status"], rows[name].get("error")]
    return rows, signatures, unsettled


def _is_fresh(store: Path, state: _State) -> bool:
    if _scan(store) != state.signatures:
        return False
    for name, shown in state.unsettled.items():
        row, _ = row_of(store / name)
        if [row["status"], row.get("error")] != shown:
            return False
    return True


def _write_index(
    store: Path,
    frame: pd.DataFrame,
    rows: dict[str, Row],
    signatures: dict[str, Signature],
    unsettled: dict[str, list[str | None]],
) -> None:
    state = _State(_FORMAT, secrets.token_hex(8), signatures, unsettled)
    cache = json.dumps({"token": state.token, "rows": rows}).encode()
    content = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {**(content.schema.metadata or {}), _KEY: json.dumps(state._asdict()).encode()}
    buffer = io.BytesIO()
    pq.write_table(content.replace_schema_metadata(metadata), buffer, write_page_checksum=True)
    write_atomic(store / _ROWS, gzip.compress(cache, compresslevel=1))
    write_atomic(store / INDEX, buffer.getvalue())


def _state_of(metadata: dict[bytes, bytes] | None) -> _State | None:
    try:
        state = _State(**json.loads((metadata or {})[_KEY]))
    except (KeyError, ValueError, TypeError):
        return None
    whole = state.format == _FORMAT and isinstance(state.signatures, dict) and isinstance(state.unsettled, dict)
    return state if whole else None


def _read_index(store: Path) -> tuple[pd.DataFrame, _State] | None:
    """The index and what it says of itself; None when it is missing, damaged or of another format."""
    try:
        with explained(store / INDEX):
            content = pq.read_table(io.BytesIO(read_regular(store / INDEX)), page_checksum_verification=True)
        state = _state_of(content.schema.metadata)
        frame = content.to_pandas()
    except (StoreError, pa.ArrowException, ValueError, TypeError, KeyError, AttributeError):
        return None
    ours = all(str(frame.dtypes.get(name)) == dtype for name, dtype in COLUMNS.items()) and frame.columns.is_unique
    return (frame, state) if ours and state and list(frame["run_id"]) == sorted(state.signatures) else None


def _read_rows(store: Path) -> tuple[dict[str, Row], _State] | None:
    """The rows behind the index, when they are those that it was made from."""
    try:
        state = _state_of(pq.read_schema(io.BytesIO(read_regular(store / INDEX))).metadata)
        cache: Any = json.loads(gzip.decompress(read_regular(store / _ROWS)))
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, pa.ArrowException):
        return None
    if state is None or not isinstance(cache, dict) or cache.get("token") != state.token:
        return None
    rows: Any = cache.get("rows")
    ours = isinstance(rows, dict) and all(isinstance(row, dict) and row.get("run_id") == n for n, row in rows.items())
    return (rows, state) if ours else None
