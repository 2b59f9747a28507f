"""The messages between a sweep's process and its workers.

Messages are pickled, because these processes alone make them. A spec travels as plain values: a plugin's class is found
by executing the plugin that the spec names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsabench.engine.sink import Update
from dsabench.spec.run import validate
from dsabench.sweeps.launcher import Job, Note, Outcome


@dataclass(frozen=True)
class Start:
    """The first message to a worker: its store, device and settings."""

    store: str
    engine: dict[str, Any]
    """The EngineSpec, as plain values; its device is the worker's."""

    concurrency: int
    threads: int | None
    """PyTorch's threads, where workers share a CPU."""


@dataclass(frozen=True)
class Assignment:
    """A Job, as plain values."""

    spec: dict[str, Any]
    run_id: str
    sweep: str | None
    retry_failed: bool
    halve: bool

    def job(self) -> Job:
        """The Job. Executes the plugin files that the spec names."""
        return Job(validate(self.spec), self.sweep, self.retry_failed, self.halve, run_id=self.run_id)


@dataclass(frozen=True)
class OneAtATime:
    """From now on one run at a time; sent while no run is under way."""


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
    """The outcome of a job."""

    run_id: str
    outcome: Outcome
    lost: bool = False
    """The worker takes no more work."""


Order = Assignment | OneAtATime
Report = Ready | Note | Progress | Result
