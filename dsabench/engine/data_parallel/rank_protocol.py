"""The messages between a rank and its leader, and the line they travel on.

    process -> rank   folders of modules, then Task, then `stop` to rank 0; the end of the line is the end of the rank
    rank -> process   Said, whose answer rank 0 waits for where it is a call of the sink

When the leader dies, the line ends, and with it the rank, whatever it is doing: no process is left over, and the
leader's temporary folder is removed.
"""

from __future__ import annotations

import _thread
import os
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsabench.user_folders import remove_if_abandoned

if TYPE_CHECKING:
    from dsabench.engine.starting_weights import StartingPoint

STOP = "stop"

DYING_S = 0.05
"""How long after its end of the line a process that dies may hold its locks."""


@dataclass(frozen=True)
class Task:
    """The run that the ranks train."""

    spec: dict[str, Any]
    """The run's spec, in plain values."""

    run_id: str
    data: dict[str, str]
    """Digests that the data must have."""

    device: str
    """Kind of the ranks' devices: `cuda`, where rank r has GPU r, or `cpu`."""

    threads: int
    """CPU threads of each rank."""

    start: StartingPoint | None = None
    """The trained model that the run starts from."""


Kind = Literal[
    "hello", "begins", "sink", "written", "update", "warning", "done", "stopped", "lost", "failed", "refused"
]


@dataclass(frozen=True)
class Said:
    """One message of a rank. The contents by kind:

    hello      rank; nothing heavy is loaded yet
    begins     nothing: from here on a stop is an orderly one
    sink       a method of the sink, and its arguments; `checkpoint` and `replace_checkpoint` are answered
    written    None once a checkpoint's files are in the folder that was answered, or the OSError that prevented it
    update     an Update
    warning    text
    done       the run's summary
    stopped    nothing
    lost       reason and log: another rank is gone, most likely
    failed     reason and log
    refused    a DsabenchError
    """

    kind: Kind
    contents: tuple[Any, ...] = ()


class Line:
    """The rank's end of the line. A thread listens to it all the time."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._folder = folder
        self._connection, self._answers = connection, queue.SimpleQueue[Any]()
        self._ended_well = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if message == STOP:
                    _thread.interrupt_main(signal.SIGTERM)  # as if this process had got the signal; see shutdown
                else:
                    self._answers.put(message)
        except (EOFError, OSError):
            remove_if_abandoned(self._folder, DYING_S)
            # At once: what Python and its libraries do at exit might wait for a rank that is gone.
            os._exit(0 if self._ended_well else 1)

    def say(self, kind: Kind, *contents: Any) -> None:
        """Send a Said."""
        try:
            self._connection.send(Said(kind, contents))
        except OSError:
            self.wait_for_the_end()

    def answer(self) -> Any:
        """The next message to this rank."""
        return self._answers.get()

    def finish(self, kind: Kind, *contents: Any) -> None:
        """Send the rank's last message, and wait for the end of the process."""
        self._ended_well = kind in ("done", "stopped")
        self.say(kind, *contents)
        self.wait_for_the_end()

    def wait_for_the_end(self) -> None:
        """Wait until the listening thread ends the process."""
        threading.Event().wait()


class Relay:
    """The sink of rank 0: the run's writer is in the process at the other end of the line."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def metrics(self, record: dict[str, Any]) -> None:
        """See RunSink."""
        self.line.say("sink", "metrics", record)

    def rewind(self, step: int) -> None:
        """See RunSink."""
        self.line.say("sink", "rewind", step)

    def checkpoint(self) -> Path | None:
        """See RunSink."""
        self.line.say("sink", "checkpoint")
        found: Path | None = self.line.answer()
        return found

    def replace_checkpoint(self, write: Callable[[Path], None]) -> None:
        """See RunSink."""
        self.line.say("sink", "replace_checkpoint")
        try:
            write(self.line.answer())
        except OSError as error:  # a full disk, say: the writer knows what to make of it
            self.line.say("written", OSError(error.errno, error.strerror))
        else:
            self.line.say("written", None)
        self.line.answer()
