"""The sink of a training run: the interface through which it records and checkpoints; and its progress updates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class RunSink(Protocol):
    """Where a run's records go; the store's writer is one."""

    def metrics(self, record: dict[str, Any]) -> None:
        """Append one record of kind `train` or `eval`."""

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, all of them at -1: the run resumes from there."""

    def checkpoint(self) -> Path | None:
        """The folder of the last complete checkpoint, if there is one."""

    def replace_checkpoint(self, write: Callable[[Path], None]) -> None:
        """Have `write` fill a new folder, then put it in the old one's place at once."""


class Nowhere:
    """The sink of a rank that records nothing."""

    def metrics(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def rewind(self, step: int) -> None:
        """Nothing."""

    def checkpoint(self) -> Path | None:
        """None: rank 0 knows."""

    def replace_checkpoint(self, write: Callable[[Path], None]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Update:
    """Progress of a run, for a display: where it begins, after every segment, and while and after it evaluates."""

    step: int
    """Steps done; where a run begins, those of its checkpoint."""

    steps: int
    loss: float | None
    """Of the last train record; None before the first, and so are the others."""

    val_loss: float | None
    tokens_per_second: float | None
    evaluated: float | None = None
    """The share of the evaluation at this step that is done; None while none is under way."""


class Seldom:
    """Passes on shares of something under way, at most one in half a second."""

    SECONDS = 0.5

    def __init__(self, tell: Callable[[float], None]) -> None:
        self.tell, self.last = tell, time.monotonic()

    def __call__(self, share: float) -> None:
        """Tell this share, if it is time."""
        if time.monotonic() - self.last >= self.SECONDS:
            self.last = time.monotonic()
            self.tell(share)
