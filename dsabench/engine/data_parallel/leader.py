"""The leader of the ranks of one run: it starts them by torchrun's agent, takes their messages and answers.

The leader trains nothing. It alone writes the run to the store and handles signals, and it tells rank 0 when to stop.
A rank that fails or dies ends all of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dsabench.engine import failures
from dsabench.engine.busy_cores import Others
from dsabench.engine.data_parallel.rank_process import ENTRY
from dsabench.engine.data_parallel.rank_protocol import STOP, Said, Task
from dsabench.engine.data_parallel.ranks import RankFailedError, Ranks
from dsabench.engine.device import Execution, first_line
from dsabench.engine.prepared_run import PreparedRun
from dsabench.errors import DeviceError, SpecError
from dsabench.shutdown import deferred
from dsabench.spec.run import RunSpec
from dsabench.user_folders import temporary_folder

T = TypeVar("T")

LOOK_SECONDS = 0.2
"""Time between looks at whether the agent still runs; messages of ranks are taken at once."""

GRACE_SECONDS = 2.0
"""How long the leader waits, once a rank has lost another, for the lost one's message or end, which says why."""

END_SECONDS = 10.0
"""How long the leader waits for the end of the ranks, which takes no time but on a busy machine."""


def spread(spec: RunSpec, execution: Execution, size: int) -> Execution:
    """The execution by `size` processes, as rank 0 has it; unchanged for one.

    Raises SpecError where the batch has no `size` equal shares, DeviceError where there are not as many GPUs.
    """
    if size == 1:
        return execution
    if size < 1:
        raise SpecError(f"data_parallel = {size} is not accepted; accepted: 1 or more processes")
    batch = spec.batch_size
    if batch % size:
        would = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise SpecError(f"data_parallel = {size} does not divide the batch of {batch} windows; {would} would")
    if execution.compiled:
        raise SpecError(f"engine.compile = full is for one process, and data_parallel = {size}; use auto, graph or off")
    if execution.device.type == "mps":
        raise DeviceError(f"data_parallel = {size} needs {size} devices, and mps is one; use engine.device = cpu")
    if execution.device.type == "cuda":
        count = torch.cuda.device_count()
        if ":" in spec.engine.device:
            raise SpecError(f"engine.device = {spec.engine.device} is one GPU, and data_parallel = {size}; use cuda")
        if size > count:
            there = "there is 1" if count == 1 else f"there are {count}"
            raise DeviceError(f"data_parallel = {size} needs {size} CUDA GPUs, and {there}; at most {count} will do")
    return replace(execution, ranks=Ranks(0, size))


def train_with_ranks(run: PreparedRun, run_id: str) -> dict[str, Any]:
    """As loop.train_steps, by run.execution.ranks.size processes.

    Raises RankFailedError, and the DsabenchError that a rank met; KeyboardInterrupt after the ranks have stopped.
    """
    size, device = run.execution.ranks.size, run.execution.device
    if device.type == "cuda":
        torch.cuda.empty_cache()  # rank 0 uses the same GPU
    threads = max(1, torch.get_num_threads() // size)
    task = Task(run.spec.model_dump(mode="json"), run_id, run.data.fingerprint, device.type, threads, run.start)
    with temporary_folder() as folder:
        others = Others()
        ranks = _Ranks(run, task, folder)
        try:
            summary = ranks.to_the_end()
        finally:
            with deferred():
                ranks.end()
        # Rank 0 takes the other ranks for other programs; here, all of them have ended, and are known as its children.
        load = others.cores()
        return summary if load is None else {**summary, "other_load": load}


class _Agent(threading.Thread):
    """torchrun's agent, in a thread: in the main one it would handle signals its own way."""

    def __init__(self, size: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            run_id="dsabench",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "agent")),
        )
        self.folder = folder
        self.exit_codes: dict[int, int] = {}
        """Of the ranks that failed."""
        self.error: Exception | None = None

    def run(self) -> None:
        """Until all ranks have ended."""
        # Ranks inherit the mask: a signal to all processes of a job reaches the leader alone, which stops them in turn.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            with _hushed():
                arguments = str(self.folder).replace("$", "$$"), str(os.getpid())
                elastic_launch(self.config, sys.executable)("-P", "-c", ENTRY, *arguments)
        except ChildFailedError as error:
            self.exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        except Exception as error:
            self.error = error


class _Ranks:
    """The ranks of one run."""

    def __init__(self, run: PreparedRun, task: Task, folder: Path) -> None:
        self.size, self.sink, self.observe = run.execution.ranks.size, run.sink, run.observe
        self.task, self.folder = task, folder
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(str(folder / "line"))
        self.door.listen(self.size)
        self.lines: dict[Connection, int | None] = {}
        """The rank at the other end of each line; None before its `hello`."""
        self.begun = self.asked = False
        self.ended: dict[int, Said] = {}
        self.lost: tuple[float, Said] | None = None
        self.agent = _Agent(self.size, folder)
        self.agent.start()

    def to_the_end(self) -> dict[str, Any]:
        """Take messages of the ranks until all are done; returns rank 0's summary."""
        while len(self.ended) < self.size:
            try:
                ready = wait([self.door, *self.lines], LOOK_SECONDS)
                with deferred():
                    if self.door in ready:
                        self._welcome()
                    for line in [line for line in self.lines if line in ready]:
                        self._hear(line)
                    self._look()
            except KeyboardInterrupt:
                if not self.begun or self.asked:
                    raise
                self.asked = True
                self._line_of(0).send(STOP)
        if any(said.kind == "stopped" for said in self.ended.values()):
            raise KeyboardInterrupt
        summary: dict[str, Any] = self.ended[0].contents[0]
        return summary

    def end(self) -> None:
        """End the ranks that are there."""
        for line in self.lines:
            line.close()
        self.door.close()
        self.lines.clear()
        self.agent.join(1.0 if self.asked else END_SECONDS)  # when asked to stop, time is left to record the run

    def _welcome(self) -> None:
        connected, _ = self.door.accept()
        line = Connection(connected.detach())
        self.lines[line] = None
        line.send(sys.path)

    def _line_of(self, rank: int) -> Connection:
        return next(line for line, its in self.lines.items() if its == rank)

    def _hear(self, line: Connection) -> None:
        try:
            said: Said = line.recv()
        except (EOFError, OSError):
            raise self._death(self.lines[line]) from None
        match said.kind, said.contents:
            case "hello", (rank,):
                self.lines[line] = rank
                line.send(self.task)
            case "begins", _:
                self.begun = self.begun or self.lines[line] == 0
            case "sink", ("replace_checkpoint",):
                self.sink.replace_checkpoint(lambda folder: self._have_written(line, folder))
                line.send(None)
            case "sink", ("checkpoint",):
                line.send(self.sink.checkpoint())
            case "sink", (method, argument):
                getattr(self.sink, method)(argument)
            case "update", (update,):
                self.observe(update)
            case "warning", (text,):
                warnings.warn(text, stacklevel=2)
            case "lost", _:
                self.lost = self.lost or (time.monotonic() + GRACE_SECONDS, said)
            case "failed", (reason, log):
                raise RankFailedError(reason, log + self._logs())
            case "refused", (error,):
                raise error
            case _:
                rank = self.lines[line]
                assert rank is not None
                self.ended[rank] = said

    def _have_written(self, line: Connection, folder: Path) -> None:
        line.send(folder)
        try:
            said: Said = line.recv()
        except (EOFError, OSError):
            raise self._death(self.lines[line]) from None
        if said.kind != "written":
            raise RankFailedError(str(said.contents[0]), str(said.contents[-1]) + self._logs())
        if said.contents[0] is not None:
            raise said.contents[0]

    def _look(self) -> None:
        """Raise the error that no rank reports: a rank was lost, or the agent ended too early."""
        if self.lost is not None and time.monotonic() > self.lost[0]:
            reason, log = self.lost[1].contents
            raise RankFailedError(reason, log + self._logs())
        if not self.agent.is_alive() and len(self.ended) < self.size:
            raise self._death(None)

    def _death(self, rank: int | None) -> RankFailedError | DeviceError:
        """The error for a rank that died without a message; None where it is not known which did. Ends the others."""
        self.end()
        codes = self.agent.exit_codes
        if rank is None and self.agent.error is not None:
            return DeviceError(f"{self.size} processes could not be started: {first_line(self.agent.error)}")
        if rank is None:
            rank = min(codes, default=0)
        code = codes.get(rank)
        how = "died" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        again = "the same command goes on from the last checkpoint"
        return RankFailedError(f"rank {rank} of {self.size} {how}; {again} ({failures.LOG})", self._logs())

    def _logs(self) -> str:
        """The output of each rank."""
        found = ((path.stem, path.read_text(errors="replace")) for path in sorted(self.folder.glob("rank*.log")))
        return "".join(f"\n{rank}:\n{text}" for rank, text in found if text.strip())


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Silences torchrun's agent while inside, because the leader tells the user. Restores all settings afterwards."""
    variable = "TORCHELASTIC_SIGNALS_TO_HANDLE"
    before, nothing = os.environ.get(variable), logging.NullHandler()
    loggers = [logging.getLogger(f"torch.distributed.{name}") for name in ("elastic", "launcher")]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(nothing)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(nothing)
            logger.propagate = True
        if before is None:
            os.environ.pop(variable, None)
