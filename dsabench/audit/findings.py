"""Findings of a causality audit, in words and for the run's record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dsabench.attention.base import Stage
from dsabench.audit.causality import Leak
from dsabench.spec.run import RunSpec

Mode = Literal["train", "eval"]


@dataclass(frozen=True)
class Finding:
    """A leak, and where it was seen."""

    leak: Leak
    mode: Mode
    stage: Stage
    length: int
    """Tokens of the window that it was seen in."""

    top_k: int | None
    """Keys that a query keeps there."""

    full_size: bool
    how: str = ""
    """What else was special of the calls, as `, two documents in a window`."""

    def __str__(self) -> str:
        at = f"L={self.length}" + (f", k={self.top_k}" if self.top_k is not None else "")
        size = "" if self.full_size else " of a small copy"
        where = f"({at}{size}; {self.mode} mode, {self.stage} stage{self.how}; first in {self.leak.where})"
        changed = f"position {self.leak.position} changes by {self.leak.size:.2g} of its size"
        if self.leak.kind == "rows":
            return f"depends on the other rows of its batch: {changed} when only those change {where}"
        if self.leak.kind == "calls":
            return f"gives another output at the next call: {changed} though nothing else does {where}"
        return f"looks ahead: {changed} when only positions after {self.leak.boundary} change {where}"


@dataclass(frozen=True)
class Audit:
    """What one audit of one model found."""

    findings: tuple[Finding, ...]
    """For each mode and stage the first leak of each kind, at full size and in small copies."""

    length: int
    """Tokens of the windows at full size; fewer than the run's when those did not fit into memory."""

    boundaries: int
    """Boundaries tried at full size."""

    copies: tuple[str, ...]
    """The small copies, as `L=32 k=16 fp64`; every boundary of each was tried."""

    seconds: float
    crash: Exception | None = None
    """What the model raised, in place of an answer."""

    @property
    def leak(self) -> bool:
        """Whether anything was found."""
        return bool(self.findings)

    @property
    def first(self) -> Finding | None:
        """The finding to name: what other findings may follow from comes first, then full size, then position."""
        kinds = ("calls", "look-ahead", "rows")
        return min(
            self.findings,
            key=lambda one: (kinds.index(one.leak.kind), not one.full_size, one.leak.position, one.leak.boundary),
            default=None,
        )

    def notes(self, spec: RunSpec) -> list[str]:
        """What a user who trains the model must be told."""
        if self.first is None:
            return []
        return [f"LEAK: attention {spec.attention.kind} {self.first}; trained because of allow_leak, and marked LEAK"]

    def record(self) -> dict[str, Any]:
        """For the run's record."""
        return {
            "result": "crashed" if self.crash is not None else "leak" if self.leak else "passed",
            "found": None if self.first is None else str(self.first),
            "length": self.length,
            "boundaries": self.boundaries,
            "small_copies": "; ".join(self.copies),
            "seconds": round(self.seconds, 3),
        }
