"""`index.parquet`: the whole store as one table, kept up to date by reading only what changed.

`index.parquet` is for everyone; its metadata name the versions of each run.json and metrics.jsonl that it was made from
and compared with their seals. `.index.json.gz` holds the rows as JSON, one a line, so that an update has their exact
values (a column's dtype depends on all of them) without reading every run.json again. Its first line is a token that
the parquet's metadata hold too: a kill between the two writes leaves different tokens, and both files are rebuilt. So
they are when one of them is not what `.index.seal` has digests of.

Both are always written as a whole, which takes longer the larger the store is. The end of a run does so only when that
costs little beside what happened since the last time (`update`). `load_runs` does so whenever something changed: it
looks at the signature of every run.json, so that it never gives a stale row.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dsabench.errors import StoreError
from dsabench.store.files import Signature, explained, read_regular, signature
from dsabench.store.layout import LOCK, METRICS, RECORD, SWEEPS, check_schema, existing_store, locked
from dsabench.store.records import SCHEMA_VERSION
from dsabench.store.sealed_cache import read_sealed, write_sealed
from dsabench.store.table import Row, fixed_columns, row_of, table

INDEX = "index.parquet"
_ROWS = ".index.json.gz"
SEAL = ".index.seal"
FILES = (INDEX, _ROWS)
_KEY = b"dsabench"
_FORMAT = f"8 of schema {SCHEMA_VERSION}"

_SHARE = 64
"""When a run ends, the index is written if it lacks 1/_SHARE of its rows, or has fewer than _SHARE rows."""

_PATIENCE_S = 5e-3
"""It is also written if it is older than this for each row: writing takes 0.2 ms a row, at most 4 % of the time."""


class _State(NamedTuple):
    """The metadata of index.parquet."""

    format: str
    token: str
    signatures: dict[str, Signature]
    unsettled: dict[str, list[str | None]]
    """Status and error of the runs whose row can change while run.json does not: their process may be killed."""


def load_runs(store: str | Path = "runs") -> pd.DataFrame:
    """Every run of the store, one row each, sorted by run_id.

    Columns: those of `table.fixed_columns`, always; every spec field by its path (`train.learning_rate`);
    `fingerprint.*` and `environment.*`; and any further metric. dtypes: string, Int64, boolean, float64
    (NaN is missing or recorded as NaN), datetime64[us, UTC]; see `table.typed`. `status` is running, done,
    failed, interrupted (a crashed run too), damaged (not what was written) or unreadable, and then `error` says
    what is wrong with the run. `seal` is sealed, unsealed (stored before 0.3) or damaged.

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
    """Bring `index.parquet` up to date after a run has ended; in a large store not after each of many in a row.

    The runs that it then lacks, at most 1/64 of all, are added by the next `load_runs`, with which a sweep ends.

    Raises:
        StoreError: it cannot be written.
    """
    if _is_due(store):
        update_now(store)


def update_now(store: Path) -> None:
    """Bring `index.parquet` up to date with every run.json, reading those that changed.

    Raises:
        StoreError: it cannot be written.
    """
    _update_locked(store, timeout_s=120)


def _is_due(store: Path) -> bool:
    """Whether writing the index costs little beside the runs that ended, or the time that passed, since last time."""
    try:
        n = int(pq.read_metadata(io.BytesIO(read_regular(store / INDEX))).num_rows)
        age_s = time.time() - (store / INDEX).stat().st_mtime
        with os.scandir(store) as entries:
            folders = sum(e.name != SWEEPS and not e.name.startswith(".") and e.is_dir() for e in entries)
    except (OSError, pa.ArrowException):
        return True  # there is none that can be read
    return n < _SHARE or (folders - n) * _SHARE >= n or age_s > n * _PATIENCE_S


def _update_locked(store: Path, timeout_s: float) -> pd.DataFrame:
    with locked(store, timeout_s):
        # The runs are looked at under the lock, or an older view could replace a newer one.
        frame, now = _current(store)
        _write_index(store, frame, now)
        return frame


def _scan(store: Path) -> dict[str, Signature]:
    """The signatures of every run's run.json and metrics.jsonl, one after the other, by stat calls alone; None: there
    is no run.json."""
    with explained(store), os.scandir(store) as entries:
        names = sorted(e.name for e in entries if e.name != SWEEPS and not e.name.startswith(".") and e.is_dir())
    root = str(store)  # text: a Path for each takes longer than its stat call
    found: dict[str, Signature] = {}
    for name in names:
        record = signature(f"{root}/{name}/{RECORD}")
        if record is not None:
            found[name] = record + (signature(f"{root}/{name}/{METRICS}") or [])
        elif any(os.path.lexists(f"{root}/{name}/{file}") for file in (RECORD, LOCK)):
            found[name] = None
    return found


class _Rows(NamedTuple):
    """Every run of the store as it is now, by its id."""

    rows: dict[str, Row]
    lines: dict[str, str]
    """The rows as JSON."""

    signatures: dict[str, Signature]
    unsettled: dict[str, list[str | None]]
    """As in `_State`."""


def _current(store: Path) -> tuple[pd.DataFrame, _Rows]:
    """The table of every run, and the rows that it is made of."""
    cached = _read_rows(store)
    if cached is not None:
        with suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):  # no rows of ours: made anew
            now = _current_rows(store, cached)
            return table(now.rows.values()), now
    now = _current_rows(store, None)
    return table(now.rows.values()), now


def _current_rows(store: Path, cached: _Rows | None) -> _Rows:
    """Every run's row and signature as they are; cached rows where none changed."""
    # Signatures first: a run.json that is replaced in between then looks stale next time, not fresh for ever.
    now = _Rows({}, {}, _scan(store), {})
    old = cached or _Rows({}, {}, {}, {})
    for name, seen in now.signatures.items():
        if seen and name in old.rows and name not in old.unsettled and old.signatures[name] == seen:
            now.rows[name], now.lines[name] = old.rows[name], old.lines[name]
            continue
        row, may_change = row_of(store / name)
        now.rows[name], now.lines[name] = row, json.dumps(row)
        if may_change or seen is None:
            now.unsettled[name] = [row["status"], row.get("error")]
    return now


def _is_fresh(store: Path, state: _State) -> bool:
    if _scan(store) != state.signatures:
        return False
    for name, shown in state.unsettled.items():
        row, _ = row_of(store / name)
        if [row["status"], row.get("error")] != shown:
            return False
    return True


def _write_index(store: Path, frame: pd.DataFrame, now: _Rows) -> None:
    state = _State(_FORMAT, secrets.token_hex(8), now.signatures, now.unsettled)
    lines = "\n".join([json.dumps(state.token), *now.lines.values()]).encode()
    content = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {**(content.schema.metadata or {}), _KEY: json.dumps(state._asdict()).encode()}
    buffer = io.BytesIO()
    pq.write_table(content.replace_schema_metadata(metadata), buffer, write_page_checksum=True)
    write_sealed(store, SEAL, {_ROWS: gzip.compress(lines, compresslevel=1), INDEX: buffer.getvalue()})


def _state_of(metadata: dict[bytes, bytes] | None) -> _State | None:
    try:
        state = _State(**json.loads((metadata or {})[_KEY]))
    except (KeyError, ValueError, TypeError):
        return None
    whole = state.format == _FORMAT and isinstance(state.signatures, dict) and isinstance(state.unsettled, dict)
    return state if whole else None


def _read_index(store: Path) -> tuple[pd.DataFrame, _State] | None:
    """The index and its metadata; None when it is missing, damaged or of another format."""
    try:
        with explained(store / INDEX):
            content = pq.read_table(io.BytesIO(read_sealed(store, SEAL, INDEX)))
        state = _state_of(content.schema.metadata)
        frame = content.to_pandas()
    except (StoreError, pa.ArrowException, ValueError, TypeError, KeyError, AttributeError):
        return None
    fixed = fixed_columns().items()
    ours = all(str(frame.dtypes.get(name)) == dtype for name, dtype in fixed) and frame.columns.is_unique
    return (frame, state) if ours and state and list(frame["run_id"]) == sorted(state.signatures) else None


def _read_rows(store: Path) -> _Rows | None:
    """The rows that the index was made from; None when they are missing, damaged or of another index."""
    try:
        state = _state_of(pq.read_schema(io.BytesIO(read_sealed(store, SEAL, INDEX))).metadata)
        first, *lines = gzip.decompress(read_sealed(store, SEAL, _ROWS)).decode().split("\n")
        token, *rows = json.loads(f"[{','.join([first, *lines])}]")
    except (OSError, EOFError, ValueError, AttributeError, RecursionError, zlib.error, pa.ArrowException):
        return None
    names = [row.get("run_id") if isinstance(row, dict) else None for row in rows]
    if state is None or token != state.token or len(rows) != len(lines) or names != list(state.signatures):
        return None
    return _Rows(
        dict(zip(names, rows, strict=True)), dict(zip(names, lines, strict=True)), state.signatures, state.unsettled
    )
