"""The time that runs still take: what their plan predicts, mended by what was seen.

A run is made of parts of four kinds: steps of the dense warm-up, other steps, evaluations, and a start, to which
belongs all that steps do not explain. For each part

    seconds = planned seconds * r(kind, shape)

where r is seen over planned seconds of that kind in runs of that shape (attention, length, model), times the load: seen
over so expected seconds of late. A shape that was not seen takes the late ratio of its attention, of its kind, of all.
Half of "late" lies within a sixth of the time since the start, or 20 seconds. The first steps of a stage tell nothing
of the others. Runs side by side are put into places in their order; what ends last is the end.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["start", "warmup", "step", "evaluation"]

AUDIT = "auditing"
"""The part before the first run that is planned; others are what data need that are not in the cache."""

LATE_SECONDS, LATE_SHARE = 20.0, 1 / 6
"""Time after which what was seen counts half: the longer of this and this share of the time since the start."""

DOUBT = 0.02
"""Share of all planned seconds that a prediction counts for, beside seconds that were seen."""

MOST_PACE = 5.0
"""Times as long as planned that runs are expected to take because what comes before them did."""


@dataclass(frozen=True)
class RunParts:
    """The parts of a run and their planned seconds, each of one."""

    shape: tuple[str, int]
    """The kind of attention, and a number that runs share whose parts take equally long."""

    steps: int
    warmup: int
    """Steps of the dense warm-up, which come first."""

    eval_every: int
    seconds: Mapping[Kind, float]
    at: int = 0
    """Steps that are done already."""

    def left(self, step: int, evaluated: float | None, begun: bool) -> dict[Kind, float]:
        """How many of each are left after `step`; `evaluated`: the share of the evaluation there that is done, None
        where it is not begun."""
        evaluations = float(-(-(self.steps - step) // self.eval_every))  # those at later steps
        if self._evaluates(step):
            evaluations += 1.0 - (evaluated or 0.0)
        return {
            "start": 0.0 if begun else 1.0,
            "warmup": max(0, self.warmup - step),
            "step": self.steps - max(self.warmup, step),
            "evaluation": evaluations,
        }

    def _evaluates(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.steps

    def planned(self) -> float:
        """Planned seconds of what is to be done of it."""
        return self.cost(self.left(self.at, None, begun=False))

    def cost(self, parts: Mapping[Kind, float]) -> float:
        """Planned seconds of parts."""
        return sum(count * self.seconds[kind] for kind, count in parts.items())


@dataclass
class _Sums:
    """Planned and seen seconds, all and of late."""

    planned: float = 0.0
    seen: float = 0.0
    late_planned: float = 0.0
    late_seen: float = 0.0

    def add(self, planned: float, seen: float) -> None:
        self.planned += planned
        self.seen += seen
        self.late_planned += planned
        self.late_seen += seen

    def fade(self, factor: float) -> None:
        self.late_planned *= factor
        self.late_seen *= factor


@dataclass
class _Underway:
    """A run that was started."""

    parts: RunParts
    since: float
    """When it was heard of last."""

    step: int
    evaluated: float | None = None
    begun: bool = False
    stages: set[Kind] = field(default_factory=set)
    """Kinds of steps of which some were seen."""

    def left(self) -> dict[Kind, float]:
        return self.parts.left(self.step, self.evaluated, self.begun)


@dataclass(frozen=True)
class _Preparing:
    """A part of what comes before the first run, under way."""

    part: str
    began: float
    since: float
    """When it was heard of last."""

    share: float
    planned: bool


class TimeLeft:
    """Hears what runs do, and says how long the rest takes."""

    def __init__(
        self,
        runs: Mapping[str, RunParts],
        *,
        places: int = 1,
        before: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """runs: those to be done, by name and in order. places: runs at a time. before: planned seconds of what comes
        before the first run."""
        self.clock, self.places, self.before = clock, places, before
        self.parts = dict(runs)
        self.waiting = dict(runs)
        self.underway: dict[str, _Underway] = {}
        self.sums: dict[tuple[Kind, tuple[str, int]], _Sums] = {}
        self.rates: dict[tuple[Kind, tuple[str, int]], float] = {}
        """What was reckoned from the sums as they are."""
        self.began = self.faded = clock()
        self.prepared = 0.0
        """The share of `before` that is done."""
        self.preparing: _Preparing | None = None
        self.pace = 1.0
        """What is expected of a planned second before a run was seen."""
        self.total = before + sum(parts.planned() for parts in runs.values())

    def prepare(self, part: str, share: float, *, planned: bool) -> None:
        """This share is done of a part of what comes before the first run; one that is planned is all of `before`."""
        now = self.clock()
        began = self.preparing.began if self.preparing is not None and self.preparing.part == part else now
        self.preparing = _Preparing(part, began, now, share, planned) if share < 1.0 else None
        if planned:
            self.prepared, done = share, self.before * share
            # A busy machine shows here first. Not without bounds, because an audit is no training.
            pace = _ratio(now - began + DOUBT * self.total, done + DOUBT * self.total, 1.0)
            self.pace = min(MOST_PACE, max(1 / 2, pace))
            self.rates.clear()

    def start(self, name: str) -> None:
        """A run is begun, or begun anew."""
        self.prepared, self.preparing = 1.0, None
        parts = self.waiting.pop(name, None) or self.parts.get(name)
        if parts is not None:
            self.underway[name] = _Underway(parts, self.clock(), parts.at)

    def update(self, name: str, step: int, evaluated: float | None = None) -> None:
        """A run has done this many steps, and this share of the evaluation there; None where that is not begun."""
        run = self.underway.get(name)
        if run is None:
            return
        now, before = self.clock(), run.left()
        first = not run.begun
        run.step, run.evaluated, run.begun = step, evaluated, True
        after = run.left()
        seconds, run.since = max(0.0, now - run.since), now
        if first and step > run.parts.at:
            return  # it goes on from a step that nobody knew: the time tells nothing
        self._see(run, {kind: before[kind] - after[kind] for kind in before}, seconds, now)

    def end(self, name: str) -> None:
        """A run has ended, in whatever way."""
        run = self.underway.pop(name, None)
        self.waiting.pop(name, None)
        if run is not None and run.step == run.parts.steps:  # storing it belongs to what a start costs
            now = self.clock()
            self._add("start", run.parts.shape, 0.0, max(0.0, now - run.since), now)

    def left(self) -> float:
        """Seconds until all is done."""
        now = self.clock()
        free = [max(0.0, self._seconds(run.parts, run.left()) - (now - run.since)) for run in self.underway.values()]
        ends = sorted(free)[-self.places :]
        ends += [0.0] * (self.places - len(ends))
        heapq.heapify(ends)
        for parts in self.waiting.values():
            heapq.heappush(ends, heapq.heappop(ends) + self._seconds(parts, parts.left(parts.at, None, begun=False)))
        return self._before(now) + max(ends)

    def share(self, name: str | None = None) -> float:
        """The share of the planned seconds of a run, or of all, that is done."""
        if name is not None:
            run = self.underway.get(name)
            return 0.0 if run is None else 1.0 - _ratio(run.parts.cost(run.left()), run.parts.planned())
        left = self.before * (1.0 - self.prepared) + sum(parts.planned() for parts in self.waiting.values())
        left += sum(run.parts.cost(run.left()) for run in self.underway.values())
        return min(1.0, max(0.0, 1.0 - _ratio(left, self.total)))

    def _before(self, now: float) -> float:
        """Seconds until the first run. Of a part that is not planned, as many as it has taken for each share so far."""
        rest, part = self.before * (1.0 - self.prepared), self.preparing
        if part is None:
            return rest
        spent = part.since - part.began
        if not part.planned:
            return rest + max(0.0, _ratio(spent * (1.0 - part.share), part.share) - (now - part.since))
        done, doubt = self.before * part.share, DOUBT * self.total
        return max(0.0, rest * _ratio(spent + doubt, done + doubt, 1.0) - (now - part.since))

    def _see(self, run: _Underway, did: Mapping[Kind, float], seconds: float, now: float) -> None:
        """Take note of parts that took so many seconds together, which are shared out as they were expected."""
        shape, planned = run.parts.shape, run.parts.seconds
        expected = {kind: n * planned[kind] * self._rate(kind, shape) for kind, n in did.items() if n > 0}
        scale = _ratio(seconds, sum(expected.values()), 1.0)
        for kind, its in expected.items():
            spent = its * scale
            if kind in ("warmup", "step") and kind not in run.stages:
                run.stages.add(kind)
                self._add("start", shape, 0.0, max(0.0, spent - its), now)
            else:
                self._add(kind, shape, did[kind] * planned[kind], spent, now)

    def _add(self, kind: Kind, shape: tuple[str, int], planned: float, seen: float, now: float) -> None:
        half = max(LATE_SECONDS, LATE_SHARE * (now - self.began))
        factor, self.faded = 0.5 ** ((now - self.faded) / half), now
        for sums in self.sums.values():
            sums.fade(factor)
        self.sums.setdefault((kind, shape), _Sums()).add(planned, seen)
        self.rates.clear()

    def _seconds(self, parts: RunParts, left: Mapping[Kind, float]) -> float:
        return sum(n * parts.seconds[kind] * self._rate(kind, parts.shape) for kind, n in left.items())

    def _rate(self, kind: Kind, shape: tuple[str, int]) -> float:
        """Seconds that are expected of one planned second."""
        if (kind, shape) not in self.rates:
            own, doubt = self.sums.get((kind, shape)), DOUBT * self.total
            rate = self._kin(kind, shape[0])
            if own is not None and own.planned:
                rate = (own.seen * self._load() + doubt * rate) / (own.planned + doubt)
            self.rates[kind, shape] = rate
        return self.rates[kind, shape]

    def _kin(self, kind: Kind, attention: str) -> float:
        """The late rate of a kind in runs of an attention, as far as it was seen; else of the kind, else of all."""
        rate, doubt = self.pace, DOUBT * self.total
        groups: list[list[_Sums]] = [
            [sums for (other, _), sums in self.sums.items() if other != "start"],
            [sums for (other, _), sums in self.sums.items() if other == kind],
            [sums for (other, its), sums in self.sums.items() if (other, its[0]) == (kind, attention)],
        ]
        for group in groups:
            planned, seen = sum(sums.late_planned for sums in group), sum(sums.late_seen for sums in group)
            rate = _ratio(seen + doubt * rate, planned + doubt, rate)
        return rate

    def _load(self) -> float:
        """How much slower than on average everything was of late."""
        doubt = DOUBT * self.total
        known = [sums for (kind, _), sums in self.sums.items() if kind != "start" and sums.planned]
        expected = sum(sums.late_planned * sums.seen / sums.planned for sums in known)
        return _ratio(sum(sums.late_seen for sums in known) + doubt, expected + doubt, 1.0)


def _ratio(a: float, b: float, otherwise: float = 0.0) -> float:
    return a / b if b > 0 else otherwise


@dataclass(frozen=True)
class Timetable:
    """The parts of the runs of a sweep that are to be done, in order, as `TimeLeft` takes them."""

    runs: Mapping[str, RunParts]
    places: int = 1
    before: float = 0.0

    def begin(self, clock: Callable[[], float] = time.monotonic) -> TimeLeft:
        """The time left from now on."""
        return TimeLeft(self.runs, places=self.places, before=self.before, clock=clock)

    @property
    def seconds(self) -> float:
        """Planned seconds from the first run to the end of the last, and before."""
        return self.begin(lambda: 0.0).left()
