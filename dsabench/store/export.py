"""A table of the store as a file for other programs."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pandas as pd

from dsabench.errors import StoreError
from dsabench.store.files import write_atomic

SUFFIXES = (".parquet", ".csv")


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


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write `frame` to `path` as its suffix says, whole or not at all; a file of that name is replaced.

    parquet keeps the dtypes. CSV is UTF-8, a missing value is an empty cell, times are ISO 8601 in UTC.

    Raises:
        StoreError: it cannot be written.
    """
    buffer = io.BytesIO()
    if path.suffix.lower() == ".csv":
        frame.to_csv(buffer, index=False, lineterminator="\n")
    else:
        frame.to_parquet(buffer, index=False)
    write_atomic(path, buffer.getvalue())
