"""Data of documents of given sizes, for windows and packing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from dsabench.data import TokenData


def split_of(sizes: list[int]) -> Any:
    """Documents of these sizes; a token is its own place, so that a window shows where it was cut."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return SimpleNamespace(tokens=np.arange(offsets[-1], dtype=np.uint16), offsets=offsets, names=[])


def data_of(train: list[int], val: list[int] | None = None) -> TokenData:
    return cast(TokenData, SimpleNamespace(train=split_of(train), val=split_of(val or train), overlapping=None))
