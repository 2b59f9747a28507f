"""Kernels compiled ahead of the runs that launch them, beside the preparation of their data.

    with compiling(specs, execution) as kernels:
        ...                        # data are read, a tokenizer is trained
        kernels.wait(notify, counted)
        ...                        # audits and runs find their kernels in Triton's cache

Nothing depends on it: a kernel that is not there is compiled at its first launch. On a machine without a GPU, and with
`engine.kernels: off`, nothing is started.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Protocol

import torch

from dsabench import ops
from dsabench.attention.registry import is_built_in
from dsabench.compilation.compile_order import Count, Finished, Order, Shape
from dsabench.compilation.done_before import DoneBefore
from dsabench.engine import memory_plan
from dsabench.engine.busy_cores import Others
from dsabench.engine.device import Execution
from dsabench.engine.slot import shape_of
from dsabench.errors import DsabenchError
from dsabench.spec.run import RunSpec
from dsabench.user_folders import temporary_folder

_log = logging.getLogger(__name__)

_ENTRY = """
import os, signal, sys, threading
from multiprocessing.connection import Connection
signal.signal(signal.SIGINT, signal.SIG_IGN)
pipe = Connection(int(sys.argv[1]))
sys.path[:], order = pipe.recv(), pipe.recv_bytes()
def end_with_parent():
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        pass
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end_with_parent, daemon=True).start()
from dsabench.compilation.compiler import main
main(pipe, order)
"""
"""The code that Python is started with, as leader of a process group. The parent sends nothing after the order."""

MOST_PROCESSES = 8
"""Each needs about as much memory as PyTorch with its libraries, most of it shared."""

STALLED_S = 60.0
"""Longest wait for the next kernel; the slowest that we have takes a fifth of that alone on a core."""

PART = "compiling kernels"


class Kernels(Protocol):
    """Kernels that are compiled meanwhile, or none."""

    def wait(
        self,
        notify: Callable[[str], None] = lambda message: None,
        counted: Callable[[str, float], None] = lambda part, share: None,
    ) -> None:
        """Return when they are compiled."""


class Ahead:
    """The process that compiles, as the one that trains knows it."""

    def __init__(self, order: Order, before: DoneBefore, scratch: Path) -> None:
        """scratch: a folder for the compilers' temporary files, which they leave behind when they are killed."""
        self.before = before
        self.count, self.finished = Count(0, 0), False
        self.failed: tuple[str, ...] = ()
        """Why some kernel was not compiled, a line each."""
        self.waited = 0.0
        """Seconds that somebody waited for it."""
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _ENTRY, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)},
            )
        with suppress(OSError):  # it has died, which `_hear` finds
            self.pipe.send(sys.path)
            self.pipe.send_bytes(pickle.dumps(order))

    def wait(
        self,
        notify: Callable[[str], None] = lambda message: None,
        counted: Callable[[str, float], None] = lambda part, share: None,
    ) -> None:
        """Return when the kernels are compiled, or when nothing is heard of them any more. `notify` is told once that
        they are waited for, `counted` how many are done."""
        began, said = time.monotonic(), False
        while not self.finished and self._hear(STALLED_S):
            done, wanted = self.count.done, self.count.wanted
            if wanted and not self.finished and not self.pipe.poll(0):  # it is behind, and not only unread
                if not said:
                    notify(f"compiling GPU kernels, which later runs find: {done} of {wanted} are done")
                    said = True
                counted(f"{PART} {done}/{wanted}", done / wanted)
        if said:
            counted(PART, 1.0)
        self.waited += time.monotonic() - began
        self.close()

    def _hear(self, patience_s: float) -> bool:
        """Take the next report; False when none comes any more."""
        try:
            if not self.pipe.poll(patience_s):
                return False
            report = self.pipe.recv()
        except (EOFError, OSError):
            return False
        if isinstance(report, Finished):
            self.finished, self.failed = True, report.failed
            for line in report.failed:
                _log.debug("kernels are compiled at their first launch only: %s", line)
            self.before.remember(report.folders)
        else:
            self.count = report
        return True

    def close(self) -> None:
        """End the process and all that it started."""
        if self.process.returncode is not None:
            return
        self.pipe.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class _Nothing:
    """Nothing to compile, or nobody to do it."""

    def wait(self, *_: object) -> None:
        """Return at once."""


NOTHING = _Nothing()


@contextmanager
def compiling(specs: Sequence[RunSpec], execution: Execution, processes: int | None = None) -> Iterator[Kernels]:
    """Compile the kernels of runs of these specs beside the block. processes: at a time; None: as many as cores are
    idle, at most MOST_PROCESSES."""
    order = _order(specs, execution, processes)
    if order is None or (before := DoneBefore(order)).holds():
        yield NOTHING
        return
    with ExitStack() as stack:
        ahead: Kernels = NOTHING
        with suppress(OSError, DsabenchError):  # no process, no place for files: the runs say what is wrong
            ahead = begun = Ahead(order, before, stack.enter_context(temporary_folder()))
            stack.callback(begun.close)
        yield ahead


def _order(specs: Sequence[RunSpec], execution: Execution, processes: int | None) -> Order | None:
    """None where nothing is to be compiled, or where what is compiled here would not be found by a launch."""
    elsewhere = "TRITON_CACHE_MANAGER" in os.environ or os.environ.get("TRITON_INTERPRET") == "1"
    if execution.device.type != "cuda" or not execution.fused or torch.version.hip or elsewhere:
        return None
    if execution.compiled or not (shapes := tuple(_shapes(specs, execution))):
        return None
    gpu = ops.gpu_of(execution.device)
    return Order(shapes, gpu, execution.precision, execution.deterministic, processes or _idle())


def _shapes(specs: Sequence[RunSpec], execution: Execution) -> Iterator[Shape]:
    """Of every different shape, of built-in attentions: a plugin's code is executed where it is trained, only."""
    for spec in {shape_of(spec).model_dump_json(): spec for spec in specs}.values():
        if all(map(is_built_in, spec.attention.kinds)):
            with suppress(DsabenchError):  # it does not fit, which its run says
                fits = memory_plan.plan(spec, spec.expected_vocab_size, execution)
                yield Shape(spec, spec.expected_vocab_size, fits.micro_batch, fits.recompute)


def _idle() -> int:
    others = Others()
    time.sleep(0.05)
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_PROCESSES, int(there - (others.cores() or 0.0)) - 1))
