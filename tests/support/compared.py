"""Effects planted in synthetic stores, and the rows of a comparison."""

from __future__ import annotations

from typing import Any

from dsabench.analysis.comparison import Comparison
from dsabench.analysis.comparison_row import Row
from dsabench.spec.run import RunSpec

DENSE, DSA = {"kind": "dense"}, {"kind": "dsa", "top_k_ratio": 0.25}


def on(kind: str, size: float, only: int | None = None) -> Any:
    """An effect of `size` nats on runs of one kind (at one length)."""

    def effect(spec: RunSpec) -> float:
        return size if spec.attention.kind == kind and only in (None, spec.length) else 0.0

    return effect


def rows(found: Comparison) -> dict[int, Row]:
    assert len(found.tables) == 1
    return {row.length: row for row in found.tables[0].rows}
