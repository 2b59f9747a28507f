"""The messages between a sweep's process and its workers.

It was made by these processes alone, so that it may be pickled; a spec travels as plain values all the same, because a
plugin's class is found by executing the plugin, which the spec names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsabench.engine.sink import Update
from dsabench.spec.sweep import validate
from dsabench.sweeps.launcher import Job, Note, Outcome


@dataclass(frozen=True)
class Start:
    """What a worker is to be."""

    store: str
    engine: dict[str, Any]
    """The EngineSpec, as plain values; its device is the worker's."""

    concurrency: int
    threads: int | None
    """Of PyTorch on a CPU that workers share."""


@dataclass(frozen=True)
class Assignment:
    """A Job, as plain values."""

    spec: dict[str, Any]
    run_id: str
    sweep: str | None
    retry_failed: bool
    halve: bool

    def job(self) -> Job:
        """Executes the plugin files that the spec names."""
        return Job(validate(self.spec), self.sweep, self.retry_failed, self.halve, run_id=self.run_id)


@dataclass(frozen=True)
class OneAtATime:
    """No run is under way, and none shares the device from now on."""


@dataclass(frozen=True)
class Ready:
    """The worker has its device."""


@dataclass(frozen=True)
class Progress:
    """An update of a run."""

    run_id: str
    update: Update


@dataclass(frozen=True)
class Result:
    """What became of a job."""

    run_id: str
    outcome: Outcome
    lost: bool = False
    """The worker takes no more work."""


Order = Assignment | OneAtATime
Report = Ready | Note | Progress | Result
