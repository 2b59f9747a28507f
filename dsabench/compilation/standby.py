"""The compiling process while it has no order: it loads PyTorch and Triton, as the process that trains does just then.

Loads neither itself, so that it can be started first.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from dsabench.compilation.done_before import notes_of_this_code
from dsabench.spec.run import EngineSpec

_ENTRY = """
import os, queue, signal, sys, threading
from multiprocessing.connection import Connection
pipe, orders = Connection(int(sys.argv[1])), queue.SimpleQueue()
sys.path[:] = pipe.recv()
def hear():
    try:
        while True:
            orders.put(pipe.recv_bytes())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)
threading.Thread(target=hear, daemon=True).start()
from dsabench.compilation.compiler import main
main(pipe, orders)
"""
"""The code that Python is started with, as leader of a process group, which ends when the pipe does."""

CORES = 4
"""Fewest cores of a machine on which it is worth a core to load PyTorch twice at once."""

_DRIVER = Path("/dev/nvidiactl")
"""Linux: what NVIDIA's driver makes."""


class Standby:
    """The process. It sees no GPU: neither finding nor compiling kernels needs one, and its memory is the trainer's."""

    def __init__(self) -> None:
        """Raises OSError where none can be started."""
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _ENTRY, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            )
        with suppress(OSError):  # it has died, which whoever reads from it finds
            self.pipe.send(sys.path)

    def close(self) -> None:
        """End the process and all that it started."""
        if self.process.returncode is not None:
            return
        self.pipe.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


_waiting: list[Standby] = []
"""At most one."""


def begin(engine: EngineSpec) -> None:
    """Start one for `take`, where kernels will probably be compiled: on a GPU, by code that has never done so here."""
    on_gpu = _DRIVER.exists() and engine.device.partition(":")[0] in ("auto", "cuda") and engine.kernels != "off"
    if _waiting or not on_gpu or not finds_launches() or (os.cpu_count() or 1) < CORES:
        return
    if importlib.util.find_spec("triton") is not None and not notes_of_this_code().is_dir():
        with suppress(OSError):
            _waiting.append(Standby())


def take() -> Standby:
    """The one that was begun, or a new one. Raises OSError."""
    return _waiting.pop() if _waiting else Standby()


def dismiss() -> None:
    """End the one that was begun, if it was not taken."""
    while _waiting:
        _waiting.pop().close()


def finds_launches() -> bool:
    """Whether kernels that are compiled into Triton's cache are found there by launches."""
    return "TRITON_CACHE_MANAGER" not in os.environ and os.environ.get("TRITON_INTERPRET") != "1"
