"""A run that is ready to be trained: its data are read, its device is chosen, its sink is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsabench.data import Batch, TaskData, TokenData, WindowSource
from dsabench.engine.device import Execution
from dsabench.engine.sink import RunSink, Update
from dsabench.engine.starting_weights import StartingPoint
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

    start: StartingPoint | None = None
    """The trained model that it starts from; None where all weights are drawn."""

    def batch(self, windows: WindowSource, step: int) -> Batch:
        """The batch of a step: after P steps of a trained model, that of its step P + step, so that no text is seen
        again unnoticed."""
        past = 0 if self.start is None else self.start.steps
        return windows.batch(self.spec.seed, past + step, self.spec.batch_size, past + self.spec.train.steps)
