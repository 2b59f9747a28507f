"""The reasons for which there is no verdict, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dsabench.analysis.comparison_row import Row

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def withheld_words(rows: Sequence[Row], baseline: str) -> str:
    """Why these rows of one cause have no verdict: `all six models are above the unigram baseline`."""
    cause = rows[0].withheld
    if cause is None:
        return "LEAK, it sees later tokens, so its numbers mean nothing"
    if cause == "selects everything":
        keys = sorted({row.k for row in rows if row.k is not None and row.k >= row.length})
        if keys:
            return f"it selects everything (k = {', '.join(map(str, keys))}), so it is dense attention"
        return f"{baseline} selects everything, so it is dense attention"
    if cause == "learnt nothing":
        return _idle(rows)
    if cause == "overfitted":
        return _overfitted(rows)
    if cause == "noisy times":
        return worst_doubt(rows)
    spread = max(row.memory_spread for row in rows)
    return f"the peak memory of one attention differs up to {spread:.2f}-fold between seeds"


def worst_doubt(rows: Sequence[Row]) -> str:
    """Why the step times of these rows say little, of the row where they differ most; empty when they do not."""
    doubted = [row for row in rows if row.time_doubt]
    return max(doubted, key=lambda row: row.time_spread).time_doubt if doubted else ""


def _idle(rows: Sequence[Row]) -> str:
    n, total = sum(row.learnt_nothing for row in rows), sum(2 * row.difference.n for row in rows)
    models = f"all {_word(n)} models are" if n == total else f"{_word(n)} of {_word(total)} models {_are(n)}"
    if all(math.isfinite(row.mean("task_accuracy")) for row in rows):
        return f"{models} no better than a solver that does not see what the task is about"
    return f"{models} above the unigram baseline, so they have learnt nothing"


def _overfitted(rows: Sequence[Row]) -> str:
    n, total = sum(row.overfitted for row in rows), sum(2 * row.difference.n for row in rows)
    models = f"all {_word(n)} models" if n == total else f"{_word(n)} of {_word(total)} models"
    rise = max(rise for row in rows for rise in (row.rise, row.baseline_rise) if math.isfinite(rise))
    return (
        f"{models} overfitted (validation loss up to {rise:.3f} nats above its lowest, while training loss fell), so "
        "the losses say who memorises less"
    )


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _word(n: int) -> str:
    return _NUMBERS[n] if n < len(_NUMBERS) else f"{n:,}"
