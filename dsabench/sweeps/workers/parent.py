"""The parent of a worker, as the worker knows it: its orders, what it is told, and its end.

A thread listens to the parent all the time. When the parent dies, however it does, the worker is asked to stop, and
GRACE_S later it ends, whatever it is doing: no process is left over. Loads nothing heavy, so that this holds while
PyTorch is loaded, too.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

STOP = signal.SIGUSR1
"""Asks to stop. SIGINT and SIGTERM often reach all processes of a group, and the parent is the one to decide."""

GRACE_S = 1.0
"""Time that an orphan has to checkpoint its runs and mark them; what is stored is whole at every moment."""


class Parent:
    """The other end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._orders = pipe, queue.SimpleQueue[bytes]()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._orders.put(self._pipe.recv_bytes())
        os.kill(os.getpid(), STOP)
        time.sleep(GRACE_S)
        os._exit(0)

    def tell(self, report: object) -> None:
        """Send a report. When the parent is gone nobody reads it, and STOP is on its way."""
        with suppress(OSError):
            self._pipe.send(report)

    def has_more(self) -> bool:
        """Whether an order has come."""
        return not self._orders.empty()

    def hear(self) -> Any:
        """The next order."""
        return pickle.loads(self._orders.get())
