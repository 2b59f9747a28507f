"""Tables of a store as Parquet or CSV files for other programs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dsabench.errors import StoreError
from dsabench.store.files import results_file

SUFFIXES = (".parquet", ".csv")

INSTEAD = "free some space, or name a file in another folder"

_FORMULA = re.compile(r"[=+\-@\t\r](?![\d.]+([eE][+-]?\d+)?$)")
"""The start of text that a spreadsheet takes for a formula; a number is none."""


def check_table_path(path: Path, store: Path) -> None:
    """Refuse, before any work is done, a file that `write_table` would not write.

    Raises:
        StoreError: the name ends in none of SUFFIXES, a folder is missing or in the way, or it lies in the store.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise StoreError(f"{path}: the name says the format, and must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise StoreError(f"{path}: a folder; name a file")
    if not path.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {path.parent}; make it first, or name another")
    if not os.access(path.parent, os.W_OK):
        raise StoreError(f"{path}: the folder {path.parent} cannot be written to; name another")
    if store.resolve() in path.resolve().parents:
        raise StoreError(f"{path}: inside the store {store}, which keeps its own files; name a place outside it")


def write_table(parts: Iterable[pd.DataFrame], path: Path) -> int:
    """Write the rows of `parts`, frames of the same columns and dtypes, to `path`; returns their number.

    The suffix is the format. The file is written whole or not at all, and replaces one of that name. Parquet keeps the
    dtypes. CSV is UTF-8, with empty cells for missing values, times as ISO 8601 in UTC, and an apostrophe before text
    that begins like a formula.

    Raises:
        ResultsError: it cannot be written; what was there stays.
    """
    with results_file(path, INSTEAD) as file:
        return (_write_csv if path.suffix.lower() == ".csv" else _write_parquet)(parts, file)


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` for a CSV file: an apostrophe before text, and names of columns, that a spreadsheet would compute."""
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name].dtype)]
    guarded = frame.assign(**{str(name): frame[name].map(_guarded, na_action="ignore") for name in texts})
    return guarded.rename(columns=_guarded)


def _guarded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _write_csv(parts: Iterable[pd.DataFrame], file: BinaryIO) -> int:
    n = 0
    for i, frame in enumerate(parts):
        inert(frame).to_csv(file, index=False, lineterminator="\n", header=i == 0)
        n += len(frame)
    return n


def _write_parquet(parts: Iterable[pd.DataFrame], file: BinaryIO) -> int:
    n, writer = 0, None
    for frame in parts:
        rows = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(file, rows.schema)
        writer.write_table(rows)
        n += len(frame)
    if writer is not None:
        writer.close()
    return n
