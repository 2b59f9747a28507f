"""A process that trains the runs that its parent, which has `devices.Workers`, sends it.

    python -m dsabench.launch.worker FD

FD is the worker's end of a pipe. The parent sends a `Start`, then `Assignment`s; the worker sends updates of runs,
lines for the user, and what became of each job. It stops, with what is under way checkpointed and marked
`interrupted`, at STOP and when its parent is gone.

What travels was made by these two processes alone, so that it may be pickled; a spec travels as plain values all the
same, because a plugin's class is found by executing the plugin, which the spec names.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from dsabench.engine.device import resolve
from dsabench.engine.sink import Update
from dsabench.errors import DsabenchError
from dsabench.launch.here import Here
from dsabench.launch.job import Ended, Job, Outcome, Refused
from dsabench.runner import DeviceLostError
from dsabench.spec.fields import EngineSpec
from dsabench.spec.sweep import validate
from dsabench.stopping import on_signals

STOP = signal.SIGUSR1
"""Asks to stop. SIGINT and SIGTERM often reach all processes of a group, and the parent is the one to decide."""

LOST = 3
"""Exit code of a worker whose device takes no more work."""


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
    sweep: str
    retry_failed: bool
    halve: bool

    def job(self) -> Job:
        """Executes the plugin files that the spec names."""
        return Job(self.run_id, validate(self.spec), self.sweep, self.retry_failed, self.halve)


@dataclass(frozen=True)
class OneAtATime:
    """No run is under way, and none shares the device from now on."""


@dataclass(frozen=True)
class Told:
    """A line for the user."""

    line: str


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
Report = Told | Progress | Result


def work(pipe: Connection) -> int:
    """Until the parent closes the pipe; the exit code."""
    start: Start = pipe.recv()
    if start.threads is not None:
        torch.set_num_threads(start.threads)
    warnings.showwarning = lambda message, *rest, **more: pipe.send(Told(str(message)))
    here = Here(
        start.store,
        resolve(EngineSpec.model_validate(start.engine)),
        start.concurrency,
        lambda line: pipe.send(Told(line)),
    )
    try:
        while True:
            while not here.active or pipe.poll():
                _take(pipe.recv(), here, pipe)
            ended = here.turn()
            if ended is None:
                continue
            job, outcome = ended
            if isinstance(outcome, Refused) and isinstance(outcome.error, DeviceLostError):
                print(outcome.error, file=sys.stderr)
                return LOST
            lost = isinstance(outcome, Ended) and outcome.lost
            pipe.send(Result(job.run_id, Ended(outcome.record) if isinstance(outcome, Ended) else outcome, lost))
            if lost:
                return 0
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone, or wants no more
        return 0
    finally:
        here.close()


def _take(order: Order, here: Here, pipe: Connection) -> None:
    match order:
        case Assignment(run_id=run_id):
            try:
                job = order.job()
            except DsabenchError as error:  # a plugin that works once only, say
                pipe.send(Result(run_id, Refused(error)))
                return
            here.begin(job, lambda update: pipe.send(Progress(run_id, update)))
        case OneAtATime():
            here.one_at_a_time()


def main() -> int:
    """As the module says."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with on_signals([STOP]):
        try:
            return work(Connection(int(sys.argv[1])))
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of libraries do not keep it
