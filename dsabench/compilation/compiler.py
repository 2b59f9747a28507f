"""The compiling process: it finds out which kernels planned runs launch, and compiles them in processes of its own.

It is started by `standby`. The parent sends the folders of modules, and an `Order`; the process sends `Count`s, and
`Finished` at its end.

Its processes are forked, once PyTorch and Triton are loaded, which takes seconds and is done once. Each takes a shape
or a kernel at a time; kernels are compiled as soon as the first shape is known.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from dsabench.compilation import dry_run
from dsabench.compilation.compile_order import Count, Finished, Launches, Order
from dsabench.compilation.specialisations import Specialisation, compile_one, described, recorded
from dsabench.engine.device import first_line
from dsabench.ops import Gpu
from dsabench.spec.run import RunSpec

ANY_GPU = Gpu((9, 0), 132)
"""That nothing is compiled for."""

_DIE_WITH_PARENT = 1
"""Linux: PR_SET_PDEATHSIG of prctl(2)."""


def main(pipe: Connection, orders: SimpleQueue[bytes]) -> None:
    """Carry out the order that comes; does not return."""
    dry_run.load()
    if orders.empty():  # there is time for what PyTorch loads and remembers at the first pass of a model
        with suppress(Exception), recorded(ANY_GPU):
            dry_run.launch_all(RunSpec(), 300, 1, False, Order((), ANY_GPU, "bf16", False))
    wanted: Order = pickle.loads(orders.get())
    os.environ["TMPDIR"], tempfile.tempdir = wanted.scratch, None
    with suppress(OSError):  # the parent is gone, and the end is near
        pipe.send(_compile_all(wanted, lambda done, known: pipe.send(Count(done, known))))
    os.killpg(0, signal.SIGKILL)  # itself, and whatever it started


def _compile_all(order: Order, tell: Any) -> Finished:
    """Compile what is launched, telling (kernels done, kernels known) after each."""
    known: dict[Specialisation, None] = {}
    folders: list[str] = []
    failed: list[str] = []
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(order.processes, context, _end_with(os.getpid())) as pool:
        waiting: dict[Future[Any], bool] = {pool.submit(_launched_by, one, order): True for one in order.wanted}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                lists = waiting.pop(future)
                try:
                    found = future.result()
                except Exception as error:  # of a model or of a compiler: the run itself meets it, and says so
                    failed.append(first_line(error))
                    continue
                if not lists:
                    folders.append(found)
                    continue
                launched, ended = found
                failed += [] if ended is None else [ended]
                for one in launched:
                    if one not in known:
                        known[one] = None
                        waiting[pool.submit(_compiled, one, order)] = False
            tell(len(folders), len(known))
    return Finished(tuple(folders), tuple(failed))


class _end_with:
    """Have a forked process end with this one, however that ends."""

    def __init__(self, parent: int) -> None:
        self.parent = parent

    def __call__(self) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != self.parent:
            os._exit(0)


def _launched_by(wanted: Launches, order: Order) -> tuple[list[Specialisation], str | None]:
    """What it launches, as far as it gets; and why it gets no further."""
    with recorded(order.gpu) as found:
        try:
            wanted.launch(order)
        except Exception as error:
            return list(found), first_line(error)
    return list(found), None


def _compiled(wanted: Specialisation, order: Order) -> str:
    with described(order.gpu):
        return compile_one(wanted).name
