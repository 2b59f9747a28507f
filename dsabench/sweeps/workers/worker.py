"""The worker process: it trains the runs that its parent, which has `pool.Workers`, sends it.

    python -P -c ENTRY FD

FD is the worker's end of a pipe. The parent sends the folders of modules, a `Start`, then `Assignment`s. The worker
sends updates of runs, lines for the user, and the outcome of each job. At STOP, and when its parent is gone, it
checkpoints the runs under way, marks them `interrupted`, and ends.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings

import torch

from dsabench.engine.device import resolve
from dsabench.errors import DsabenchError
from dsabench.shutdown import on_signals
from dsabench.spec.run import EngineSpec
from dsabench.sweeps.in_process import Here
from dsabench.sweeps.launcher import Ended, Note, Refused
from dsabench.sweeps.single_run import DeviceLostError
from dsabench.sweeps.workers.parent import STOP, Parent
from dsabench.sweeps.workers.protocol import Assignment, OneAtATime, Order, Progress, Ready, Result, Start

ENTRY = f"""
import os, signal, sys
signal.signal(signal.{STOP.name}, lambda *_: os._exit(0))
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
sys.path[:] = pipe.recv()
from dsabench.sweeps.workers.parent import Parent
parent = Parent(pipe)
from dsabench.sweeps.workers.worker import main
main(parent)
"""
"""The code that Python is started with. Modules are found where the parent finds them, and nowhere else. A worker that
gets STOP, or whose parent dies, before it has loaded them ends at once."""

LOST = 3
"""Exit code of a worker whose device takes no more work."""


def work(parent: Parent) -> int:
    """Until STOP, which is a KeyboardInterrupt, or the device is lost; the exit code."""
    start: Start = parent.hear()
    if start.threads is not None:
        torch.set_num_threads(start.threads)
    warnings.showwarning = lambda message, *rest, **more: parent.tell(Note(str(message)))
    here = Here(
        start.store,
        resolve(EngineSpec.model_validate(start.engine)),
        start.concurrency,
        lambda line: parent.tell(Note(line)),
    )
    parent.tell(Ready())
    try:
        while True:
            while not here.active or parent.has_more():
                _take(parent.hear(), here, parent)
            ended = here.turn()
            if ended is None:
                continue
            job, outcome = ended
            if isinstance(outcome, Refused) and isinstance(outcome.error, DeviceLostError):
                print(outcome.error, file=sys.stderr)
                return LOST
            lost = isinstance(outcome, Ended) and outcome.lost
            parent.tell(Result(job.run_id, Ended(outcome.record) if isinstance(outcome, Ended) else outcome, lost))
            if lost:
                return 0
    finally:
        here.close()


def _take(order: Order, here: Here, parent: Parent) -> None:
    match order:
        case Assignment(run_id=run_id):
            try:
                job = order.job()
            except DsabenchError as error:  # from executing a plugin, say
                parent.tell(Result(run_id, Refused(error)))
                return
            here.begin(job, lambda update: parent.tell(Progress(run_id, update)))
        case OneAtATime():
            here.one_at_a_time()
        case _:
            raise AssertionError(order)


def main(parent: Parent) -> None:
    """As the module says; does not return."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with on_signals([STOP]):
        try:
            code = work(parent)
        except KeyboardInterrupt:
            code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting for threads of libraries
