"""The program of a rank: one of the processes that train a run together, started by `leader`."""

from __future__ import annotations

import faulthandler
import os
import signal
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dsabench._version import __file__ as _version_file
from dsabench.engine.data_parallel.rank_protocol import Line, Task

ENTRY = """
import os, sys
from multiprocessing.connection import Client
os.dup2(os.open(os.path.join(sys.argv[1], "rank" + os.environ["RANK"] + ".log"), os.O_WRONLY | os.O_CREAT, 0o600), 1)
os.dup2(1, 2)
try:
    line = Client(os.path.join(sys.argv[1], "line"))
    sys.path[:] = line.recv()
except (EOFError, OSError):
    import shutil, time
    time.sleep(0.1)
    if os.getppid() != int(sys.argv[2]):
        shutil.rmtree(sys.argv[1], ignore_errors=True)
    os._exit(1)
from dsabench.engine.data_parallel.rank_process import main
main(line, sys.argv[1])
"""
"""The code that Python is started with; its arguments are the leader's temporary folder, to which the rank's output
goes, and the leader's process id: a rank that finds it dead removes the folder. Modules are found where the leader
finds them, and nowhere else."""


def main(connection: Connection, folder: str) -> None:
    """The program of a rank. folder: the leader's temporary one."""
    line = Line(connection, Path(folder))
    rank = int(os.environ["RANK"])
    line.say("hello", rank)
    task: Task = line.answer()
    faulthandler.enable()
    # The leader handles signals, which are blocked here; but STOP is delivered by SIGTERM's handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if rank == 0:
        _tell_warnings(line)
    from dsabench.engine.data_parallel.rank_training import train_as_rank
    from dsabench.engine.data_parallel.ranks import Ranks

    train_as_rank(task, Ranks(rank, int(os.environ["WORLD_SIZE"])), line)


def _tell_warnings(line: Line) -> None:
    """Send dsabench's own warnings to the leader; those of libraries stay in this process's log."""
    show, package = warnings.showwarning, str(Path(_version_file).parent)

    def showwarning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any, **others: Any
    ) -> None:
        if filename.startswith(package):
            line.say("warning", str(message))
        else:
            show(message, category, filename, lineno, *more, **others)

    warnings.showwarning = showwarning
