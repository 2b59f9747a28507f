"""The interface of a tracker: its input, a run and its points, and its duties.

A tracker writes below one folder and nowhere else, and uses no network. Names that it is given (of runs, metrics and
parameters) are safe in any of them: letters, digits, `_`, `.`, `-`, a letter or digit first, and `/` between two such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from dsabench.errors import DsabenchError
from dsabench.store.records import Scalar


class TrackerError(DsabenchError):
    """A tracker is not installed, or cannot write what it was given."""


class Point(NamedTuple):
    """The numbers of one record of a run's metrics."""

    step: int
    time: float
    """Seconds since 1970: the run's start and its training seconds until then; interruptions do not show."""

    values: dict[str, float]
    """{`train/loss`: number}; NaN and infinities are among them."""


@dataclass(frozen=True)
class Run:
    """A run apart from its metrics."""

    run_id: str
    name: str
    """Its id, with `LEAK-` before it where its attention sees later tokens."""

    leak: bool
    status: Literal["running", "done", "failed", "interrupted"]
    parameters: Mapping[str, Scalar]
    """The fields of its spec by their paths."""

    summary: Mapping[str, float]
    """The numbers of its summary."""

    tags: Mapping[str, str]
    """Texts: status, sweep, error, version, environment; `leak` when the run is one."""

    started: float
    """Seconds since 1970."""

    updated: float

    @property
    def last_step(self) -> int:
        """The step that its summary belongs to."""
        return int(self.summary.get("steps", 0))


class Session(Protocol):
    """A run that is being written to a tracker."""

    def log(self, points: Sequence[Point]) -> None:
        """Add these, in their order."""

    def end(self, run: Run) -> None:
        """The run has ended: write its summary and status, and close."""

    def leave(self) -> None:
        """Close without an end: the run goes on, or its export does not."""


class Tracker(Protocol):
    """A place that runs are written to."""

    def begin(self, run: Run, points: Sequence[Point]) -> Session | None:
        """Begin to write `run`, in place of what an export before wrote of it.

        points: all that there is so far, to compare with what is there; `Session.log` gives them again. None: the
        run has ended, and all of it is there already.
        """

    def close(self) -> None:
        """End; nothing is written after this."""
