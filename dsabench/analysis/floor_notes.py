"""The note on runs of tasks that recorded a lower guess than the floor that tables show."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from dsabench.store.recorded_floors import RECORDED

_GUESS = f"{RECORDED}chance_accuracy"


def floor_notes(runs: pd.DataFrame) -> Iterator[str]:
    """A line where runs recorded another accuracy than the floor that their rows have."""
    if _GUESS not in runs:
        return
    known = runs[pd.to_numeric(runs[_GUESS], errors="coerce").notna()].drop_duplicates("run_id")
    if len(known):
        guess, floor = (_span(known[name].astype(float)) for name in (_GUESS, "chance_accuracy"))
        yield (
            f"{len(known)} run{'s' * (len(known) > 1)} of an earlier version recorded {guess} as the accuracy of "
            f"guessing; the best solver that does not see what the task is about reaches {floor}, and that is shown"
        )


def _span(shares: pd.Series[float]) -> str:
    """`3.1%`, or `3.1% to 12.5%`."""
    return " to ".join(dict.fromkeys((f"{shares.min():.1%}", f"{shares.max():.1%}")))
