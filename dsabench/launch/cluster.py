"""Runs trained by the nodes of a Ray cluster, one task a run.

Nodes share no files with the driver: a task trains in a store of its own and streams home what comes of it (node.py),
and this process alone writes to the sweep's store (arrival.py). A run whose node dies is trained again on another one,
from the checkpoint that came home last.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsabench import data as data_package
from dsabench.attention.registry import plugin_digest
from dsabench.engine.sink import Update
from dsabench.errors import DeviceError, SpecError, StoreError
from dsabench.launch import node, rays
from dsabench.launch.arrival import Arrival
from dsabench.launch.job import Busy, Ended, Job, Outcome, Refused
from dsabench.planning import fingerprint
from dsabench.spec.fields import DataSpec, EngineSpec, RunSpec
from dsabench.store import RunBusyError, RunRecord

TURN_SECONDS = 0.5
"""Longest wait of a turn."""

RESOURCES_SECONDS = 5.0
"""Time between looks at how large the cluster is: nodes come and go."""

AHEAD = 2
"""Runs that wait for a place, so that none stands idle."""

MOST_DEATHS = 3
"""Nodes that may die under one run, which may be why they do."""


@dataclass(eq=False)
class _Run:
    """A run under way."""

    job: Job
    observe: Callable[[Update], None]
    arrival: Arrival
    stream: Any = None
    """Of its task's reports."""

    host: str = "its node"
    deaths: int = 0


class Cluster:
    """A launcher (`Launcher`) with a Ray cluster."""

    def __init__(
        self,
        store: str | Path,
        specs: Sequence[RunSpec],
        concurrency: int,
        notify: Callable[[str], None],
        address: str | None = None,
        train: Callable[..., Iterator[node.Report]] = node.train,
    ) -> None:
        """specs: of the sweep's runs. concurrency: runs that share a GPU. address: `auto`, HOST:PORT, or None for a
        cluster of this machine alone, which ends with the sweep. train: what a task does.

        Raises SpecError, and DeviceError when there is no cluster or it lacks what the specs ask for.
        """
        self.store, self.concurrency, self.notify, self.train = Path(store), concurrency, notify, train
        self.plugins = _contents(specs)
        self.runs: list[_Run] = []
        self.ended: deque[tuple[Job, Outcome]] = deque()
        """Jobs that have, and have not been told of."""
        self.digests: dict[DataSpec, dict[str, str]] = {}
        self.ray = rays.join(address)
        try:
            self.shared = self.ray.put(self.plugins)
            self.looked_at, self.places = time.monotonic(), 0
            self.on_gpu = _on_gpu(specs[0].engine, self.ray.cluster_resources())
            self._place()
        except BaseException:
            self.ray.shutdown()
            raise

    def _place(self) -> None:
        """Choose what of a node each run takes, from now on."""
        share = 1 / self.concurrency
        self.threads = None if self.on_gpu else _threads()
        cpus = share if self.threads is None else self.threads
        self.placement = rays.Placement(cpus, share if self.on_gpu else 0)
        self.task = rays.task(self.ray, self.placement)
        self._look()

    def _look(self) -> None:
        self.looked_at = time.monotonic()
        self.places = self.placement.fits(self.ray.cluster_resources())

    def has_room(self) -> bool:
        """As `Launcher` says."""
        if time.monotonic() - self.looked_at > RESOURCES_SECONDS:
            self._look()
        return len(self.runs) + len(self.ended) < self.places + AHEAD

    def begin(self, job: Job, observe: Callable[[Update], None]) -> None:
        """As `Launcher` says."""
        if job.spec.data not in self.digests:
            self.digests[job.spec.data] = data_package.fingerprint(job.spec.data)
        try:
            found = Arrival.expect(job, self.store, fingerprint(job.spec, self.digests[job.spec.data]))
        except RunBusyError:
            self.ended.append((job, Busy()))
            return
        if isinstance(found, RunRecord):
            self.ended.append((job, Ended(found)))
            return
        run = _Run(job, observe, found)
        self.runs.append(run)
        self._send(run)

    def _send(self, run: _Run) -> int:
        """Start the run's task; the step that it goes on from, or -1."""
        step, metrics, files = run.arrival.rewind()
        spec = _absolute(run.job.spec.model_dump(mode="json"), cpu=not self.on_gpu)
        order = node.Order(
            run.job.run_id,
            spec,
            run.arrival.writer.record.fingerprint,
            run.job.halve,
            self.concurrency,
            self.threads,
            metrics,
        )
        pieces = {name: [self.ray.put(piece) for piece in _pieces(file)] for name, file in files.items()}
        known = self.ray.cloudpickle.dumps((self.train, order))
        run.stream = self.task.remote(rays.versions(), known, self.shared, pieces)
        return step

    def turn(self) -> tuple[Job, Outcome] | None:
        """As `Launcher` says."""
        if not self.ended:
            streams = [run.stream for run in self.runs]
            ready, _ = self.ray.wait(streams, num_returns=1, timeout=TURN_SECONDS)
            if ready:
                ready, _ = self.ray.wait(streams, num_returns=len(streams), timeout=0)
            for run in [run for run in self.runs if any(run.stream is stream for stream in ready)]:
                self._listen(run)
        return self.ended.popleft() if self.ended else None

    def _listen(self, run: _Run) -> None:
        """Take in one report of the run, or see to it if there will be none."""
        errors = self.ray.exceptions
        try:
            report = self.ray.get(next(run.stream))
            self._take_in(run, report)
        except StopIteration:
            self._end(run, Ended(run.arrival.died("it stopped without a word", "")))
        except (
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
            errors.TaskCancelledError,
        ) as lost:
            self._lost(run, lost)
        except errors.WorkerCrashedError:
            self._end(run, Ended(run.arrival.died(f"on node {run.host}, killed or by a fault of its own", "")))
        except errors.RayTaskError as error:
            first = str(error.cause).strip().partition("\n")[0] if error.cause else "of an unknown reason"
            said = f"on node {run.host}, {type(error.cause).__name__}: {first}"
            self._end(run, Ended(run.arrival.died(said, str(error))))
        except errors.RayError as error:
            raise DeviceError(f"the Ray cluster is lost: {' '.join(str(error).split())}") from error

    def _take_in(self, run: _Run, report: node.Report | str) -> None:
        match report:
            case str(useless):
                self._end(run, Refused(DeviceError(useless)))
            case node.Began(host):
                run.host = host
            case node.Note(line):
                self.notify(line)
            case Update():
                run.observe(report)
            case node.Lines(text):
                run.arrival.lines(text)
            case node.Checkpoint(sizes):
                run.arrival.checkpoint(sizes, lambda: self.ray.get(next(run.stream)))
            case node.Result(Ended(record), log):
                self._end(run, Ended(run.arrival.end(record, log)))
            case node.Result(outcome):
                self._end(run, outcome)
            case _:
                raise AssertionError(report)

    def _end(self, run: _Run, outcome: Outcome) -> None:
        self.runs.remove(run)
        if not isinstance(outcome, Ended):
            run.arrival.give_up()
        self.ended.append((run.job, outcome))

    def _lost(self, run: _Run, error: Exception) -> None:
        """The run's node has gone, or had no memory for it: send it to another one."""
        run.deaths += 1
        what = "ran out of memory" if isinstance(error, self.ray.exceptions.OutOfMemoryError) else "is gone"
        if run.deaths == MOST_DEATHS:
            how = f"{run.deaths} nodes were lost under it; the last one, {run.host}, {what}"
            self._end(run, Ended(run.arrival.died(how, str(error))))
            return
        step = self._send(run)
        again = f"goes on from step {step}" if step >= 0 else "is trained again"
        self.notify(f"{run.host} {what}: {run.job.run_id} {again} elsewhere")

    def one_at_a_time(self) -> None:
        """As `Launcher` says."""
        self.concurrency = 1
        self._place()

    def close(self) -> None:
        """As `Launcher` says, but that a checkpoint is not waited for: the last one that came home stays."""
        for run in self.runs:
            with suppress(self.ray.exceptions.RayError):
                self.ray.cancel(run.stream, force=True)
        for run in self.runs:
            with suppress(StoreError):  # of the others each is to be closed
                run.arrival.give_up()
        self.runs.clear()
        self.ray.shutdown()


def _on_gpu(engine: EngineSpec, resources: dict[str, float]) -> bool:
    """Whether runs take GPUs of the cluster. Raises SpecError and DeviceError."""
    if engine.device not in ("auto", "cuda", "cpu"):
        raise SpecError(f"engine.device = {engine.device}: with --launcher ray Ray chooses; use auto, cuda or cpu")
    has_gpus = resources.get("GPU", 0) >= 1
    if engine.device == "cuda" and not has_gpus:
        raise DeviceError("engine.device = cuda: no node of the Ray cluster has a GPU; use auto or cpu")
    return has_gpus and engine.device != "cpu"


def _threads() -> int:
    """CPUs, and threads, of a run on CPUs: those that OMP_NUM_THREADS says, or one, for runs are many."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isascii() and given.isdigit() else 1


def _contents(specs: Sequence[RunSpec]) -> dict[str, bytes]:
    """What each plugin file of the specs holds, by its path. Raises SpecError when it is not what was loaded."""
    contents: dict[str, bytes] = {}
    for path in dict.fromkeys(path for spec in specs for path in spec.plugins):
        try:
            contents[path] = Path(path).read_bytes()
        except OSError as error:
            raise SpecError(f"plugins: {path} cannot be read: {error.strerror}") from error
    there = {hashlib.sha256(content).hexdigest() for content in contents.values()}
    if changed := {kind for kind in {s.attention.kind for s in specs} if (d := plugin_digest(kind)) and d not in there}:
        raise SpecError(f"plugins: the file of attention {min(changed)} was changed just now; start the sweep again")
    return contents


def _absolute(spec: dict[str, Any], cpu: bool) -> dict[str, Any]:
    """The spec's values for a node: no path in it depends on the current folder. cpu: without a GPU of Ray's."""
    data, engine = spec["data"], spec["engine"]
    kind, colon, path = data["source"].partition(":")
    if colon and kind == "path":
        data = {**data, "source": f"path:{Path(path).expanduser().absolute()}"}
    if data["tokenizer"] not in ("bpe", "bytes"):
        data = {**data, "tokenizer": str(Path(data["tokenizer"]).expanduser().absolute())}
    if cpu and engine["device"] == "auto":
        engine = {**engine, "device": "cpu"}
    return {**spec, "data": data, "engine": engine}


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(node.PIECE_BYTES):
            yield piece
