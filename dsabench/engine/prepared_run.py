"""A run that is ready to be trained: its data are read, its device is chosen, its sink is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsabench.data import TaskData, TokenData
from dsabench.engine.device import Execution
from dsabench.engine.sink import RunSink, Update
from dsabench.spec.run import RunSpec


def unobserved(update: Update) -> None:
    """The observer of a run that nobody watches."""


@dataclass(frozen=True)
class PreparedRun:
    """What the training loop is given."""

    spec: RunSpec
    data: TokenData | TaskData
    execution: Execution
    sink: RunSink
    """Where it resumes from and records to."""

    observe: Callable[[Update], None] = unobserved
    """Told of its progress, wherever a train record is written."""
