"""The interface between a sweep's scheduler and the places that train its runs: Job, Outcome, Launcher.

scheduler -- begin(Job) -->  Launcher  -- turn() -->  (Job, Outcome)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from dsabench.engine.sink import Update
from dsabench.errors import DsabenchError
from dsabench.spec.run import RunSpec
from dsabench.store import RunRecord
from dsabench.sweeps.origin import Origin


@dataclass(frozen=True)
class RunJob:
    """One run to be trained."""

    spec: RunSpec
    sweep: str | None = None
    """The id of the sweep that it is trained for."""

    retry_failed: bool = False
    """Whether a failure that is stored is trained again."""

    halve: bool = False
    """Whether too little memory ends it as `TooManyWindows` where the micro-batch can be halved."""

    data_parallel: int = 1
    """Processes that train it together."""

    origin: Origin | None = None
    """What it starts from, where the store that it is trained in has not that."""


@dataclass(frozen=True)
class Job(RunJob):
    """A run of a sweep, whose identity is known, for a launcher."""

    run_id: str = field(kw_only=True)


@dataclass(frozen=True)
class Ended:
    """The run is stored: done or failed."""

    record: RunRecord
    lost: bool = False
    """Whether the device takes no more work from the launcher's process."""


@dataclass(frozen=True)
class Busy:
    """Another process trains the run."""


@dataclass(frozen=True)
class Crowded:
    """The run is to be trained again without others beside it."""

    why: str
    """The reason, as the end of a sentence about the run."""


@dataclass(frozen=True)
class TooManyWindows:
    """Memory ran out with a micro-batch that can be halved."""

    fewer: int
    """The micro-batch to try instead."""


@dataclass(frozen=True)
class Died:
    """The process that trained the run is gone."""

    how: str
    """By which signal or with which exit code."""

    log: str
    """The end of its output."""


@dataclass(frozen=True)
class Refused:
    """Nothing was trained, and no run of the sweep can be: `error` is for the user to mend."""

    error: DsabenchError


Outcome = Ended | Busy | Crowded | TooManyWindows | Died | Refused


@dataclass(frozen=True)
class Note:
    """A line for the user, from another process."""

    line: str


class Launcher(Protocol):
    """A place where runs are trained."""

    def has_room(self) -> bool:
        """Whether one more run can be begun now."""

    def begin(self, job: Job, observe: Callable[[Update], None]) -> None:
        """Take a job, whose updates `observe` is given; there must be room."""

    def turn(self) -> tuple[Job, Outcome] | None:
        """Let the runs go on for a moment; returns a job that ended, or None. There must be a job."""

    def one_at_a_time(self) -> None:
        """From now on each device has one run at a time; there must be no job."""

    def close(self) -> None:
        """Checkpoint the runs under way, mark them `interrupted`, and free the devices."""
