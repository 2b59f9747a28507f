"""The interface of a tracker: the content of a run that it is given, and the methods that it must have.

A tracker writes below one folder and nowhere else, and uses no network. The names of runs, metrics and parameters that
it is given are safe for every tracker: letters, digits, `_`, `.` and `-`, a letter or digit first, and `/` between two
such names.
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
    """Seconds since 1970: the run's start plus its training seconds so far; interruptions do not count."""

    values: dict[str, float]
    """{`train/loss`: number}; NaN and infinities may be among them."""


@dataclass(frozen=True)
class Run:
    """A run without its metrics."""

    run_id: str
    name: str
    """Its id, after `LEAK-` when its attention sees later tokens."""

    leak: bool
    status: Literal["running", "done", "failed", "interrupted"]
    parameters: Mapping[str, Scalar]
    """The fields of its spec by their paths."""

    summary: Mapping[str, float]
    """The numbers of its summary."""

    tags: Mapping[str, str]
    """status, sweep, error, version, and the environment; `leak` when it is one."""

    started: float
    """Seconds since 1970."""

    updated: float

    @property
    def last_step(self) -> int:
        """The step of its summary."""
        return int(self.summary.get("steps", 0))


class Session(Protocol):
    """A run that is being written to a tracker."""

    def log(self, points: Sequence[Point]) -> None:
        """Add these points, in their order."""

    def end(self, run: Run) -> None:
        """Write the summary and the status of the run, which has ended, and close."""

    def leave(self) -> None:
        """Close without a summary: the run goes on, or its export has failed."""


class Tracker(Protocol):
    """A tracker that is open for writing."""

    def begin(self, run: Run, points: Sequence[Point]) -> Session | None:
        """Begin to write `run`, in place of what an earlier export wrote of it.

        points: all points so far, to compare with those that the tracker has; `Session.log` gets them as well. Returns
        None when the run has ended and the tracker has all of it already.
        """

    def close(self) -> None:
        """Close the tracker: nothing more will be written."""
