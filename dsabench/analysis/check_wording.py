"""Counts, spans and differences in the words of the checks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from dsabench.plain import count as count


def difference(pairs: pd.DataFrame, column: str) -> pd.Series[float]:
    """Variant minus baseline of each pair that has both."""
    d = (
        pairs[f"a.{column}"].astype(float) - pairs[f"b.{column}"].astype(float)
        if len(pairs)
        else pd.Series(dtype=float)
    )
    return d[np.isfinite(d)]


def span(values: Iterable[float], form: str) -> str:
    """`4.412`, or `4.412 to 4.439`."""
    numbers = [value for value in values if math.isfinite(value)]
    low, high = format(min(numbers), form), format(max(numbers), form)
    return low if low == high else f"{low} to {high}"


def of(n: int, total: int, noun: str) -> str:
    """`1 of 4 runs`."""
    return f"{n:,} of {count(total, noun)}"


def missing(n: int) -> str:
    """A note that `n` runs did not record it; empty for 0."""
    return f" ({count(n, 'run')} did not record it.)" if n else ""


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}"
