"""Runs trained by the nodes of a Ray cluster, one task a run.

Nodes share no files with the driver. A task trains in a store of its own and streams metrics, checkpoints and record
home (node.py); the driver alone writes to the sweep's store (receive.py). When a node dies, its run is sent to another
one, with the last checkpoint that came home.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dsabench import data as data_package
from dsabench.engine.sink import Update
from dsabench.errors import DeviceError, DsabenchError, StoreError
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.run import RunSpec
from dsabench.store import RunBusyError, RunRecord, index
from dsabench.sweeps.launcher import Busy, Ended, Job, Note, Outcome, Refused
from dsabench.sweeps.origin import Origin, identity_of, origin_of
from dsabench.sweeps.plan import status
from dsabench.sweeps.ray import node, ray_session
from dsabench.sweeps.ray.payload import ORIGIN, TOKENIZER, Order, absolute, contents, pieces
from dsabench.sweeps.ray.receive import Arrival
from dsabench.user_folders import remove_abandoned

TURN_SECONDS = 0.5
"""Longest wait of a turn."""

RESOURCES_SECONDS = 5.0
"""Time between looks at the size of the cluster, whose nodes come and go."""

AHEAD = 2
"""Runs sent out beyond the places there are, so that no place stands idle."""

WRITERS = 8
"""Threads that write to the store; they wait for the disk at the same time, not one after another."""

INDEX_SHARE = 0.05
"""Largest share of the time that bringing the store's index up to date may take."""

WORK_SECONDS = 0.005
"""Time between looks for reports of nodes while the store is written."""

MOST_DEATHS = 3
"""Nodes that may die while they train one run, which may be the reason."""


@dataclass(eq=False)
class _Run:
    """A run under way."""

    job: Job
    observe: Callable[[Update], None]
    arrival: Arrival | None = None
    origin: Origin | None = None
    stream: Any = None
    """Of its task's reports, several at a time."""

    reports: deque[node.Report] = field(default_factory=deque)
    """Those that have come, and have not been looked at."""

    is_home: bool = False
    """Whether its task has said all."""

    host: str = "its node"
    deaths: int = 0
    work: Future[Outcome | None] | None = None
    """What a thread does for it: its outcome, if it has ended."""


class Cluster:
    """A launcher (`Launcher`) with a Ray cluster."""

    def __init__(
        self,
        store: str | Path,
        specs: Sequence[RunSpec],
        concurrency: int,
        notify: Callable[[str], None],
        address: str | None = None,
        train: Callable[..., Iterator[node.Report]] = node.train_on_node,
    ) -> None:
        """specs: of the sweep's runs. concurrency: runs that share a GPU. address: `auto`, HOST:PORT, or None for a
        cluster of this machine alone, which ends with the sweep. train: what a task does.

        Raises SpecError, and DeviceError when there is no cluster or it lacks what the specs ask for.
        """
        self.store, self.concurrency, self.notify = Path(store), concurrency, notify
        plugins = contents(specs)
        self.runs: list[_Run] = []
        self.said: deque[Callable[[], None]] = deque()
        """What the display is to be told, by the main thread."""
        self.digests: dict[DataSpec, dict[str, str]] = {}
        self.is_closing = False
        self.ray = ray_session.join(address)
        try:
            # By reference, so that a node is sent the plugins once.
            self.train = self.ray.put(self.ray.cloudpickle.dumps(partial(node.stream, train, plugins)))
            self.on_gpu = ray_session.on_gpu(specs[0].engine, self.ray.cluster_resources())
            self._place()
        except BaseException:
            self.ray.shutdown()
            raise
        self.threads = ThreadPoolExecutor(WRITERS + 1, "arrivals")
        self.index: Future[None] | None = None
        """The last update of the store's index."""
        self.index_at = 0.0

    def _place(self) -> None:
        """Choose what of a node each run takes, from now on."""
        share = 1 / self.concurrency
        self.cpu_threads = None if self.on_gpu else ray_session.cpu_threads()
        self.placement = ray_session.Placement(self.cpu_threads or share, share if self.on_gpu else 0)
        self.task = ray_session.task(self.ray, self.placement)
        self._look()

    def _look(self) -> None:
        self.looked_at = time.monotonic()
        self.places = self.placement.fits(self.ray.cluster_resources())

    def has_room(self) -> bool:
        """As `Launcher` says."""
        if time.monotonic() - self.looked_at > RESOURCES_SECONDS:
            self._look()
        out = sum(not run.is_home for run in self.runs)
        return out < self.places + AHEAD and len(self.runs) - out < WRITERS

    def begin(self, job: Job, observe: Callable[[Update], None]) -> None:
        """As `Launcher` says."""
        if job.spec.data not in self.digests:
            self.digests[job.spec.data] = data_package.fingerprint(job.spec.data)
        run = _Run(job, observe)
        run.work = self.threads.submit(self._start, run, self.digests[job.spec.data])
        self.runs.append(run)

    def turn(self) -> tuple[Job, Outcome] | None:
        """As `Launcher` says."""
        at_work = [run.work for run in self.runs if run.work is not None]
        idle = {id(run.stream): run for run in self.runs if run.work is None}
        if idle:
            streams = [run.stream for run in idle.values()]
            ready, _ = self.ray.wait(streams, num_returns=1, timeout=0 if at_work else TURN_SECONDS)
            if ready:
                ready, _ = self.ray.wait(streams, num_returns=len(streams), timeout=0)
            for stream in ready:
                run = idle[id(stream)]
                run.work = self.threads.submit(self._listen, run)
                at_work.append(run.work)
        if at_work:
            wait(at_work, WORK_SECONDS if idle else TURN_SECONDS, FIRST_COMPLETED)
        while self.said:
            self.said.popleft()()
        for run in self.runs:
            if run.work is not None and run.work.done():
                outcome = run.work.result()
                run.work = None
                if outcome is not None:
                    self.runs.remove(run)
                    self._keep_index()
                    return run.job, outcome
        return None

    def _keep_index(self) -> None:
        """Bring the store's index up to date, unless that was done a moment ago: it costs the same for many runs."""
        if time.monotonic() >= self.index_at and (self.index is None or self.index.done()):
            if self.index is not None:
                self.index.result()
            self.index = self.threads.submit(self._index)

    def _index(self) -> None:
        began = time.monotonic()
        index.update(self.store)
        self.index_at = time.monotonic() + max(1.0, (time.monotonic() - began) / INDEX_SHARE)

    # Done in threads, so that other runs go on while one waits for the disk or for a large checkpoint.

    def _start(self, run: _Run, corpus: dict[str, str]) -> Outcome | None:
        try:
            _, digests = identity_of(run.job.spec, self.store, corpus)
            if status(self.store, run.job.run_id) != "done":
                run.origin = origin_of(run.job.spec, self.store, digests, self._say)
            found = Arrival.expect(run.job, self.store, digests)
        except RunBusyError:
            return Busy()
        except DsabenchError as error:
            return Refused(error)
        if isinstance(found, RunRecord):
            return Ended(found)
        run.arrival = found
        self._send(run, found)
        return None

    def _send(self, run: _Run, arrival: Arrival) -> int:
        """Start the run's task; returns the step that it resumes from, or -1."""
        step, metrics, files = arrival.rewind()
        spec = absolute(run.job.spec.model_dump(mode="json"), cpu=not self.on_gpu)
        digests = arrival.writer.record.fingerprint
        halve = run.job.halve
        if run.origin is not None and not files:
            files = {ORIGIN + path.name: path for path in run.origin.files}
        if spec["data"]["tokenizer"] not in ("bpe", "bytes"):
            files = {**files, TOKENIZER: Path(spec["data"]["tokenizer"])}
        about = None if run.origin is None else run.origin.about
        order = Order(run.job.run_id, spec, digests, halve, self.concurrency, self.cpu_threads, metrics, about)
        parts = {name: [self.ray.put(part) for part in pieces(file)] for name, file in files.items()}
        run.reports.clear()
        run.stream = self.task.remote(ray_session.versions(), self.train, self.ray.cloudpickle.dumps(order), parts)
        return step

    def _listen(self, run: _Run) -> Outcome | None:
        """Take the run's reports that have come; returns its outcome once it has one."""
        arrival = run.arrival
        assert arrival is not None
        try:
            outcome = self._take_in(run, arrival, self._next(run))
            while run.reports:
                outcome = self._take_in(run, arrival, self._next(run))
        except StopIteration:
            return Ended(arrival.died("it stopped without a word", ""))
        except self.ray.exceptions.RayError as error:
            return None if self.is_closing else self._trouble(run, arrival, error)
        if outcome is not None and not isinstance(outcome, Ended):
            arrival.give_up()
        return outcome

    def _next(self, run: _Run) -> Any:
        if not run.reports:
            come: list[node.Report] | str = self.ray.get(next(run.stream))
            if isinstance(come, str):
                return come
            run.reports.extend(come)
            run.is_home = isinstance(come[-1], node.Result)
        return run.reports.popleft()

    def _take_in(self, run: _Run, arrival: Arrival, report: node.Report | str) -> Outcome | None:
        match report:
            case str(useless):
                return Refused(DeviceError(useless))
            case node.Began(host):
                run.host = host
            case Note(line):
                self._say(line)
            case Update():
                self.said.append(partial(run.observe, report))
            case node.Lines(text):
                arrival.lines(text)
            case node.Checkpoint(sizes):
                arrival.checkpoint(sizes, lambda: self._next(run))
            case node.Result(Ended(record), log):
                return Ended(arrival.end(record, log))
            case node.Result(outcome):
                return outcome
            case _:
                raise AssertionError(report)
        return None

    def _trouble(self, run: _Run, arrival: Arrival, error: Exception) -> Outcome | None:
        """What to do when no more reports will come: record a failure, or send the run to another node."""
        errors = self.ray.exceptions
        if isinstance(error, errors.RayTaskError):
            first = str(error.cause).strip().partition("\n")[0]
            return Ended(arrival.died(f"on node {run.host}, {type(error.cause).__name__}: {first}", str(error)))
        if isinstance(error, errors.WorkerCrashedError):
            return Ended(arrival.died(f"on node {run.host}, killed or by a fault of its own", ""))
        gone = errors.NodeDiedError, errors.ObjectLostError, errors.TaskCancelledError
        if not isinstance(error, (errors.OutOfMemoryError, *gone)):
            raise DeviceError(f"the Ray cluster is lost: {' '.join(str(error).split())}") from error
        run.deaths += 1
        what = "is gone" if isinstance(error, gone) else "ran out of memory"
        if run.deaths == MOST_DEATHS:
            how = f"{run.deaths} nodes were lost under it; the last one, {run.host}, {what}"
            return Ended(arrival.died(how, str(error)))
        run.is_home = False
        step = self._send(run, arrival)
        again = f"goes on from step {step}" if step >= 0 else "is trained again"
        self._say(f"{run.host} {what}: {run.job.run_id} {again} elsewhere")
        return None

    def _say(self, line: str) -> None:
        self.said.append(partial(self.notify, line))

    def one_at_a_time(self) -> None:
        """As `Launcher` says."""
        self.concurrency = 1
        self._place()

    def close(self) -> None:
        """As `Launcher` says, but no checkpoint is waited for: the last one that came home stays."""
        self.is_closing = True
        for run in self.runs:
            if run.stream is not None:
                with suppress(self.ray.exceptions.RayError):
                    self.ray.cancel(run.stream, force=True)
        wait([run.work for run in self.runs if run.work is not None])
        list(self.threads.map(_give_up, [run.arrival for run in self.runs if run.arrival is not None]))
        self.threads.shutdown()
        self.runs.clear()
        self.ray.shutdown()
        remove_abandoned()  # of tasks of this machine, which were killed; another node's go with its next task


def _give_up(arrival: Arrival) -> None:
    with suppress(StoreError):  # the others are to be closed too
        arrival.give_up()
