"""Step times, measured in steady segments on an undisturbed device, the seconds that a run is charged, and the load of
other programs meanwhile.

The first steps of a stage and of a process also pay for allocation, library start-up and captures, and runs that share
a device slow each other down. Such steps are charged what steady steps took while the run had the device for itself.
"""

from __future__ import annotations

from statistics import median

from dsabench.attention.base import Stage
from dsabench.engine.busy_cores import Others
from dsabench.engine.checkpoint import Progress

TIMED_SEGMENTS = 2
"""Segments of each stage that are timed when runs share a device, while the others wait."""


class StepTimes:
    """Keeps the times of a run in its `progress`. shared: other runs use the device at the same time."""

    def __init__(self, progress: Progress, shared: bool) -> None:
        self.progress, self.shared = progress, shared
        self.starting_steps, self.starting_seconds = 0, 0.0
        self.warm: set[Stage] = set()

    def on(self, machine: str) -> None:
        """The run goes on on this machine (Execution.describe)."""
        if self.progress.machine not in ("", machine):
            # A median or a sum of times of two machines means nothing.
            self.progress.step_ms, self.progress.seconds = {"dense": [], "sparse": []}, None
            self.progress.peak_memory_mb = None
            self.progress.others_seconds, self.progress.watched_seconds = 0.0, 0.0
        self.progress.machine = machine
        self.others = Others()

    def watch_others(self) -> None:
        """Add the load of other programs since the last look. Not after every segment: where there are many cores, the
        system takes milliseconds to say it."""
        work, self.others = self.others.work(), Others()
        if work is None or self.progress.others_seconds is None:
            self.progress.others_seconds = None
        else:
            self.progress.others_seconds += work[0]
            self.progress.watched_seconds += work[1]

    def other_load(self) -> float | None:
        """Cores that other programs kept busy, on average; None where that is not known."""
        others, watched = self.progress.others_seconds, self.progress.watched_seconds
        return None if others is None or not watched else max(0.0, others / watched)

    def forget(self, stage: Stage) -> None:
        """The steps that follow do other work than those of this stage before them."""
        self.progress.step_ms[stage].clear()
        self.warm.discard(stage)

    def wants_alone(self, stage: Stage) -> bool:
        """Whether the next segment of the stage is to have the device for itself."""
        return not self.shared or len(self.progress.step_ms[stage]) < TIMED_SEGMENTS

    def warms_up(self, stage: Stage) -> bool:
        """True the first time in each stage: the first replays of a graph after other runs' are slower."""
        cold = stage not in self.warm
        self.warm.add(stage)
        return cold

    def count(self, seconds: float, steps: int, stage: Stage, *, steady: bool, alone: bool) -> float:
        """Count a segment that took `seconds`; returns the seconds that it is charged."""
        timed = self.progress.step_ms[stage]
        if steady and alone:
            timed.append(1e3 * seconds / steps)
        elif steady:
            seconds = median(timed) / 1e3 * steps
        if self.progress.seconds is None:
            return seconds
        if steady:
            self.progress.seconds += seconds + self.starting_steps * seconds / steps - self.starting_seconds
            self.starting_steps, self.starting_seconds = 0, 0.0
        else:  # as measured, until a steady segment corrects it: a short run may have none
            self.starting_steps += steps
            self.starting_seconds += seconds
            self.progress.seconds += seconds
        return seconds

    def step_ms(self, stage: Stage) -> float | None:
        """Median step time of the stage in ms; None when no steady segment was timed."""
        timed = self.progress.step_ms[stage]
        return median(timed) if timed else None
