"""Runs trained by worker processes, one for each of several devices of this machine.

When a worker dies, another one takes its place, and runs of other workers go on. If it trained one run, that run has
failed. If it trained several, it is not known which one killed it, and each is trained again by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path

import torch

from dsabench.engine.sink import Update
from dsabench.errors import DeviceError, SpecError
from dsabench.shutdown import PATIENCE_S
from dsabench.spec.run import EngineSpec
from dsabench.sweeps.launcher import Crowded, Died, Job, Note, Outcome
from dsabench.sweeps.workers.parent import STOP
from dsabench.sweeps.workers.protocol import Assignment, OneAtATime, Progress, Ready, Report, Result, Start
from dsabench.sweeps.workers.worker import ENTRY, LOST
from dsabench.user_folders import temporary_file

TURN_SECONDS = 0.5
"""Longest wait of a turn."""

LOG_BYTES = 20_000
"""Of a dead worker's output, the last bytes that are kept."""

MOST_STILLBORN = 3
"""Workers in a row that end before they have their device; then no other is started."""


class Workers:
    """A launcher (`Launcher`) with a worker process for each of `devices`."""

    def __init__(
        self,
        store: str | Path,
        engine: EngineSpec,
        devices: Sequence[str],
        concurrency: int,
        notify: Callable[[str], None],
    ) -> None:
        """engine: of the sweep's runs, but for its device. concurrency: runs that share a device."""
        self.notify, self.concurrency = notify, concurrency
        on_cpu = devices.count("cpu")
        threads = max(1, torch.get_num_threads() // on_cpu) if on_cpu > 1 else None
        starts = [
            Start(str(store), {**engine.model_dump(mode="json"), "device": device}, concurrency, threads)
            for device in devices
        ]
        self.workers: list[_Worker] = []
        try:
            for start in starts:
                self.workers.append(_Worker(start))
        except BaseException:
            self.close()
            raise

    def has_room(self) -> bool:
        """As `Launcher` says."""
        return any(len(worker.jobs) < self.concurrency for worker in self.workers)

    def begin(self, job: Job, observe: Callable[[Update], None]) -> None:
        """As `Launcher` says: by the worker that has the least to do."""
        min(self.workers, key=lambda worker: len(worker.jobs)).begin(job, observe)

    def turn(self) -> tuple[Job, Outcome] | None:
        """As `Launcher` says."""
        for worker in self.workers:
            if worker.ended:
                return worker.ended.pop()
        wait([worker.pipe for worker in self.workers], TURN_SECONDS)
        for worker in self.workers:
            worker.listen(self.notify)
            if worker.ended:
                return worker.ended.pop()
        return None

    def one_at_a_time(self) -> None:
        """As `Launcher` says."""
        self.concurrency = 1
        for worker in self.workers:
            worker.one_at_a_time()

    def close(self) -> None:
        """As `Launcher` says."""
        for worker in self.workers:
            worker.stop()
        until = time.monotonic() + PATIENCE_S - 0.5  # this process has to end in time, too
        for worker in self.workers:
            worker.end(until)


class _Worker:
    """One worker process, the one that takes its place when it dies, and their jobs."""

    def __init__(self, start: Start) -> None:
        self.given = start
        self.jobs: dict[str, tuple[Job, Callable[[Update], None]]] = {}
        self.ended: list[tuple[Job, Outcome]] = []
        """Jobs that have ended and are yet to be returned by a turn."""
        self.stillborn = 0
        """Number of processes in a row that ended before they had the device."""
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = Pipe()
        self.log = temporary_file()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", ENTRY, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
            )
        self.is_ready = False
        self._send(sys.path)
        self._send(self.given)
        for job, _ in self.jobs.values():
            self._assign(job)

    def begin(self, job: Job, observe: Callable[[Update], None]) -> None:
        engine = job.spec.engine.model_copy(update={"device": self.given.engine["device"]})
        job = replace(job, spec=job.spec.model_copy(update={"engine": engine}))
        self.jobs[job.run_id] = (job, observe)
        self._assign(job)

    def _assign(self, job: Job) -> None:
        values = job.spec.model_dump(mode="json")
        self._send(Assignment(values, job.run_id, job.sweep, job.retry_failed, job.halve))

    def one_at_a_time(self) -> None:
        self.given = Start(self.given.store, self.given.engine, 1, self.given.threads)
        self._send(OneAtATime())

    def listen(self, notify: Callable[[str], None]) -> None:
        """Take the worker's reports, and start another worker if it has gone."""
        try:
            while self.pipe.poll():
                report: Report = self.pipe.recv()
                match report:
                    case Ready():
                        self.is_ready, self.stillborn = True, 0
                    case Note(line):
                        notify(line)
                    case Progress(run_id, update):
                        self.jobs[run_id][1](update)
                    case Result(run_id, outcome, lost):
                        self.ended.append((self.jobs.pop(run_id)[0], outcome))
                        if lost:
                            break
                    case _:
                        raise AssertionError(report)
            else:
                return
        except (EOFError, OSError):
            pass
        self._replace(notify)

    def _replace(self, notify: Callable[[str], None]) -> None:
        """Note the outcome of the jobs of a worker that has gone, and start another one."""
        self.pipe.close()
        code = self.process.wait()
        how, device = _how(code), self.given.engine["device"]
        said = self._said()
        if code:
            notify(f"the worker of {device} ended {how}; another one takes its place")
        if not self.is_ready:
            self.stillborn += 1
            if self.stillborn == MOST_STILLBORN:
                last = said.splitlines()[-1] if said else "it wrote nothing"
                raise DeviceError(f"the worker of {device} does not start: it ended {how} ({last})")
        else:
            is_known = len(self.jobs) == 1 and code not in (0, LOST)
            outcome = Died(how, said) if is_known else Crowded(f"lost its process, {how}, beside others")
            self.ended += [(job, outcome) for job, _ in self.jobs.values()]
            self.jobs.clear()
        self._start()

    def _said(self) -> str:
        """The end of what the process wrote."""
        with self.log as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
            return log.read().decode(errors="replace").strip()

    def _send(self, order: object) -> None:
        with suppress(OSError):  # a worker that has gone is found by `listen`
            self.pipe.send(order)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(STOP)

    def end(self, until: float) -> None:
        """Wait for the process to end, until then at most."""
        try:
            self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.pipe.close()
        self.log.close()


def _how(code: int) -> str:
    """A process's end in words, after "it ended"."""
    if code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else str(-code)
    hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
    return f"by {name}{hint}"


def devices_of(wanted: Sequence[str]) -> list[str]:
    """Names for EngineSpec.device of `all`, `cpu`, or numbers of CUDA GPUs.

    Raises SpecError, and DeviceError when there is no such GPU.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = f"there {'is 1 CUDA GPU' if count == 1 else f'are {count} CUDA GPUs'} here"
    if list(wanted) == ["all"]:
        if not count:
            raise DeviceError(f"--devices all: {there}; use --devices cpu, or leave it out")
        return [f"cuda:{i}" for i in range(count)]
    if wanted and all(name == "cpu" for name in wanted):
        return list(wanted)
    numbers = [name.removeprefix("cuda:") for name in wanted]
    if not numbers or not all(number.isascii() and number.isdigit() for number in numbers):
        raise SpecError(f"--devices {' '.join(wanted)}: all, numbers of GPUs as in 0,1, or cpu are accepted")
    missing = [number for number in numbers if int(number) >= count]
    if missing:
        raise DeviceError(f"--devices {','.join(numbers)}: there is no GPU {missing[0]}; {there}, counted from 0")
    twice = {number for number in numbers if numbers.count(number) > 1}
    if twice:
        raise SpecError(f"--devices {','.join(numbers)}: GPU {min(twice)} twice; --concurrency has runs share a GPU")
    return [f"cuda:{int(number)}" for number in numbers]
