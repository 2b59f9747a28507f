"""The number of cores that other programs keep busy, read from /proc/stat: known on Linux alone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_STAT = Path("/proc/stat")

SLACK = 0.3
"""Cores by which all programs together may exceed what the machine has before the note is shown."""


class _Moment(NamedTuple):
    clock: float
    """Seconds."""
    busy: float
    """Seconds that all cores have worked since the machine started."""
    own: float
    """Seconds that this process and its ended children have worked."""


class Others:
    """The load that other programs cause, from the making of this object on."""

    def __init__(self) -> None:
        self._start = _now()

    def work(self) -> tuple[float, float] | None:
        """Seconds that they have kept cores busy, a little below zero where ticks are counted late, and the seconds
        that have passed; None where the system does not say."""
        end = _now()
        if self._start is None or end is None or end.clock <= self._start.clock:
            return None
        others = (end.busy - self._start.busy) - (end.own - self._start.own)
        return others, end.clock - self._start.clock

    def cores(self) -> float | None:
        """Cores that they have kept busy, on average; None where the system does not say."""
        work = self.work()
        return None if work is None else max(0.0, work[0] / work[1])

    def note(self, threads: int) -> str | None:
        """A warning for training with `threads` threads on this CPU; None when there are cores enough, and for one
        thread, which waits for no other: it loses the time that others take, and not several times that."""
        cores, there = self.cores(), os.cpu_count() or 1
        if cores is None or threads == 1 or cores + threads <= there + SLACK:
            return None
        return (
            f"note: other programs keep about {cores:.1f} of {there} cores busy. Threads that wait for each other then "
            f"make steps several times slower, and their times mean little{remedy()}"
        )


def remedy() -> str:
    """What helps against threads that wait for each other, to end a sentence with; nothing where it is set."""
    return "" if "GOMP_SPINCOUNT" in os.environ else "; GOMP_SPINCOUNT=1000 before the command helps"


def _now() -> _Moment | None:
    try:
        # the line: cpu user nice system idle iowait irq softirq steal ...; what follows is counted in user and nice
        ticks = [int(word) for word in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    if len(ticks) < 8:
        return None
    return _Moment(time.monotonic(), (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]))
