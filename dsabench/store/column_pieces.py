"""Pieces of a column: values of a few runs, in arrays until the kinds of all values, and so the dtype, are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from dsabench.plain import encodable

_TYPES = {"float": np.float64, "int": np.int64, "bool": np.bool_}


class Piece(NamedTuple):
    """The values of a column in some rows."""

    kind: str
    """`float`, `int` or `bool`: an array; `str`: Arrow text; `none`: nothing but missing values; `any`: a list."""

    values: Any
    missing: np.ndarray
    """Where a value is missing; NaN is a value."""

    def listed(self) -> list[Any]:
        """The JSON values, None where one is missing."""
        if self.kind == "any":
            return list(self.values)
        if self.kind == "str":
            return list(self.values.to_pylist())
        if self.kind == "none":
            return [None] * len(self.missing)
        return [None if gone else value for value, gone in zip(self.values.tolist(), self.missing, strict=True)]


def nothing(n: int) -> Piece:
    """n missing values."""
    return Piece("none", None, np.ones(n, dtype=bool))


def piece(values: list[Any], kinds: set[str]) -> Piece:
    """These JSON values, of which `kinds` are the names of the types, but for None."""
    missing = np.array([value is None for value in values], dtype=bool)
    if not kinds:
        return nothing(len(values))
    kind = next(iter(kinds)) if len(kinds) == 1 else "any"
    if kind == "str":
        texts = {value: None if value is None else encodable(value) for value in set(values)}
        return Piece(kind, pa.array([texts[value] for value in values], pa.large_string()), missing)
    if kind not in _TYPES:
        return Piece("any", values, missing)
    if missing.any():
        blank = math.nan if kind == "float" else _TYPES[kind](0)
        values = [blank if value is None else value for value in values]
    return Piece(kind, np.array(values, dtype=_TYPES[kind]), missing)


def joined(pieces: Sequence[Piece], dtype: str) -> pd.api.extensions.ExtensionArray | np.ndarray | None:
    """The column of all pieces in `dtype`; None where it is text of other values, which must be written one by one."""
    if dtype == "float64":
        return np.concatenate([_floats(part) for part in pieces])
    missing = np.concatenate([part.missing for part in pieces])
    if dtype in ("Int64", "boolean"):
        kind = np.int64 if dtype == "Int64" else np.bool_
        values = np.concatenate(
            [np.zeros(len(part.missing), kind) if part.kind == "none" else part.values for part in pieces]
        )
        return pd.arrays.IntegerArray(values, missing) if dtype == "Int64" else pd.arrays.BooleanArray(values, missing)
    if any(part.kind not in ("str", "none") for part in pieces):
        return None
    texts = pa.chunked_array(
        [pa.nulls(len(part.missing), pa.large_string()) if part.kind == "none" else part.values for part in pieces]
    ).combine_chunks()
    column: pd.api.extensions.ExtensionArray = pd.array(
        texts if pd.StringDtype().storage == "pyarrow" else texts.to_pylist(), dtype="string"
    )
    return column


def _floats(part: Piece) -> np.ndarray:
    if part.kind == "float":
        return np.asarray(part.values)
    if part.kind == "int":
        return np.where(part.missing, math.nan, part.values.astype(np.float64))
    return np.array([math.nan if value is None else float(value) for value in part.listed()], dtype=np.float64)
