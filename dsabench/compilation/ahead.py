"""Kernels compiled ahead of the runs that launch them, beside the preparation of their data.

    with compiling(shapes_of(specs, execution), execution) as kernels:
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
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Protocol

import torch

from dsabench import ops
from dsabench.attention.registry import is_built_in
from dsabench.compilation import standby
from dsabench.compilation.compile_order import Count, Finished, Launches, Order
from dsabench.compilation.done_before import DoneBefore
from dsabench.compilation.run_shape import Shape
from dsabench.compilation.standby import Standby
from dsabench.engine import memory_plan
from dsabench.engine.busy_cores import Others
from dsabench.engine.device import Execution
from dsabench.engine.slot import shape_of
from dsabench.errors import DsabenchError
from dsabench.spec.run import RunSpec
from dsabench.user_folders import temporary_folder

_log = logging.getLogger(__name__)

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

    def __init__(self, process: Standby, order: Order, before: DoneBefore) -> None:
        self.process, self.before = process, before
        self.count, self.finished = Count(0, 0), False
        self.failed: tuple[str, ...] = ()
        """Why some kernel was not compiled, a line each."""
        self.waited = 0.0
        """Seconds that somebody waited for it."""
        with suppress(OSError):  # it has died, which `_hear` finds
            process.pipe.send_bytes(pickle.dumps(order))

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
            if wanted and not self.finished and not self.process.pipe.poll(0):  # it is behind, and not only unread
                if not said:
                    notify(f"compiling GPU kernels, which later runs find: {done} of {wanted} are done")
                    said = True
                counted(f"{PART} {done}/{wanted}", done / wanted)
        if said:
            counted(PART, 1.0)
        self.waited += time.monotonic() - began
        self.process.close()

    def _hear(self, patience_s: float) -> bool:
        """Take the next report; False when none comes any more."""
        try:
            if not self.process.pipe.poll(patience_s):
                return False
            report = self.process.pipe.recv()
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


class _Nothing:
    """Nothing to compile, or nobody to do it."""

    def wait(self, *_: object) -> None:
        """Return at once."""


NOTHING = _Nothing()


@contextmanager
def compiling(wanted: Iterable[Launches], execution: Execution, processes: int | None = None) -> Iterator[Kernels]:
    """Compile beside the block what these launch. processes: at a time; None: as many as cores are idle, at most
    MOST_PROCESSES."""
    with ExitStack() as stack:
        ahead: Kernels = NOTHING
        with suppress(OSError, DsabenchError):  # no process, no place for files: the runs say what is wrong
            if (order := _order(wanted, execution)) and not (before := DoneBefore(order)).holds():
                scratch = stack.enter_context(temporary_folder())
                process = standby.take()
                stack.callback(process.close)
                order = replace(order, processes=processes or _idle(), scratch=str(scratch))
                ahead = Ahead(process, order, before)
        standby.dismiss()
        yield ahead


def _order(wanted: Iterable[Launches], execution: Execution) -> Order | None:
    """None where nothing is to be compiled, or where what is compiled here would not be found by a launch."""
    on_cuda = execution.device.type == "cuda" and not torch.version.hip
    if not on_cuda or not execution.fused or execution.compiled or not standby.finds_launches():
        return None
    launches = tuple(wanted)
    order = Order(launches, ops.gpu_of(execution.device), execution.precision, execution.deterministic)
    return order if launches else None


def shapes_of(specs: Sequence[RunSpec], execution: Execution) -> Iterator[Shape]:
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
