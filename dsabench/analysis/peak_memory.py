"""The peak-memory check: runs that differ in nothing but the seed must agree in it, or it tells nothing."""

from __future__ import annotations

import math

import pandas as pd

from dsabench.analysis.pairing import machines

MOST_SPREAD = 1.1
"""Largest over smallest peak memory of one variant over seeds; above this the attention does not explain it."""

DOUBT = "something other than the attention is in it (on a CPU, what the process held before): do not compare it"
"""The meaning of a larger spread, in words."""


def memory_spread(finished: pd.DataFrame) -> pd.Series[float]:
    """Largest over smallest peak_memory_mb of the runs of one variant, length and machine.

    By (length, variant), the largest of its machines; only where a run recorded it.
    """
    if "peak_memory_mb" not in finished:
        finished = finished.assign(peak_memory_mb=math.nan)
    memory = pd.to_numeric(finished["peak_memory_mb"], errors="coerce").astype("Float64").astype("float64")
    runs = finished[["length", "variant"]].assign(machine=machines(finished), memory=memory)
    of_machine = runs[runs["memory"] > 0].groupby(["length", "variant", "machine"])["memory"]
    spread: pd.Series[float] = (of_machine.max() / of_machine.min()).groupby(["length", "variant"]).max()
    return spread
