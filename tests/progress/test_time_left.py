"""The time left, after histories that are known to their ends: within a third of the truth at 25, 50 and 75 %."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.progress.time_left import RunParts, TimeLeft

SEGMENT = 5
"""Steps between two updates."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class History:
    """A sweep as it in fact went: planned seconds of each part, times `rate` of its shape, times the load."""

    runs: Sequence[RunParts]
    rate: Callable[[str, RunParts], float] = lambda kind, parts: 1.0
    load: Callable[[float], float] = lambda elapsed: 1.0
    slow_start: float = 0.0
    """Further seconds of the first steps of each run."""
    places: int = 1
    before: float = 0.0
    before_rate: float = 1.0
    unplanned: float = 0.0
    """Seconds of data that were not in the cache, before all else."""
    resumed_at: int = 0
    """The step from which the first run goes on, unknown to the plan."""

    def looks(self) -> list[tuple[float, float]]:
        """(time, seconds that were said to be left), after every update."""
        clock = Clock()
        names = {f"run{i}": parts for i, parts in enumerate(self.runs)}
        left = TimeLeft(names, places=self.places, before=self.before, clock=clock)
        looks = [(clock.now, left.left())]
        for i in range(1, 21 if self.unplanned else 0):
            left.prepare("encoding", (i - 1) / 20, planned=False)
            clock.now += self.unplanned / 20
            looks.append((clock.now, left.left()))
        if self.before:
            left.prepare("auditing", 0.0, planned=True)
        for i in range(4 if self.before else 0):
            clock.now += self.before / 4 * self.before_rate * self.load(clock.now - 1000.0)
            left.prepare("auditing", (i + 1) / 4, planned=True)
            looks.append((clock.now, left.left()))
        waiting = iter(names.items())
        # (time of the next event, place, the course of the place's run)
        places: list[tuple[float, int, Iterator[float]]] = []
        for place in range(self.places):
            if (run := next(waiting, None)) is not None:
                left.start(run[0])
                heapq.heappush(places, (clock.now, place, self._course(left, *run)))
        while places:
            clock.now, place, course = heapq.heappop(places)
            seconds = next(course, None)
            looks.append((clock.now, left.left()))
            if seconds is not None:
                heapq.heappush(places, (clock.now + seconds * self.load(clock.now - 1000.0), place, course))
            elif (run := next(waiting, None)) is not None:
                left.start(run[0])
                heapq.heappush(places, (clock.now, place, self._course(left, *run)))
        return looks

    def _course(self, left: TimeLeft, name: str, parts: RunParts) -> Iterator[float]:
        """Seconds until something is told of the run, and then telling it."""

        def took(kind: Any) -> float:
            return parts.seconds[kind] * self.rate(kind, parts)

        yield took("start")
        step = self.resumed_at if name == "run0" else parts.at
        left.update(name, step)
        if step == 0:
            yield took("evaluation") / 2
            left.update(name, 0, 0.5)
            yield took("evaluation") / 2
            left.update(name, 0, 1.0)
        first = step
        while step < parts.steps:
            end = min(step + SEGMENT, parts.steps, -(-(step + 1) // parts.eval_every) * parts.eval_every)
            seconds = sum(took("warmup" if at < parts.warmup else "step") for at in range(step, end))
            yield seconds + (self.slow_start if step == first else 0.0)
            step = end
            left.update(name, step)
            if step % parts.eval_every == 0 or step == parts.steps:
                yield took("evaluation")
                left.update(name, step, 1.0)
        left.end(name)


def wrong(history: History, shares: Sequence[float] = (0.25, 0.5, 0.75)) -> dict[float, float]:
    """What was said over the truth, at these shares of the time."""
    looks = history.looks()
    begin, end = looks[0][0], looks[-1][0]
    found = {}
    for share in shares:
        now = begin + share * (end - begin)
        at, said = [look for look in looks if look[0] <= now][-1]
        found[share] = (said - (now - at)) / (end - now)
    return found


def run(attention: str = "dense", length: int = 64, step: float = 0.1, **more: Any) -> RunParts:
    seconds = {"start": 0.5, "warmup": step, "step": step, "evaluation": 10 * step}
    return replace(RunParts((attention, length), 100, 0, 50, cast("Any", seconds)), **more)


MIXED = [
    run(attention, length, length / 640 * (1.0 if attention == "dense" else 1.5), warmup=20 * (attention == "dsa"))
    for length in (64, 128, 256)
    for attention in ("dense", "dsa")
    for _ in range(3)
]
"""Three lengths, two attentions, three seeds, in the order in which a sweep trains them."""


def biased(kind: str, parts: RunParts) -> float:
    """A plan that is wrong in another way for each shape and kind."""
    of_kind = {"start": 6.0, "warmup": 2.2, "step": 2.0, "evaluation": 3.0}[kind]
    return of_kind * (1.25 if parts.shape[0] == "dsa" else 1.0) * (64 / parts.shape[1]) ** 0.15


HISTORIES = {
    "steady": History(MIXED),
    "three times slower than planned": History(MIXED, rate=lambda kind, parts: 3.0),
    "three times faster": History(MIXED, rate=lambda kind, parts: 1 / 3),
    "one run": History([run()], rate=lambda kind, parts: 4.0),
    "wrong for each shape": History(MIXED, rate=biased),
    "slow start": History(MIXED, slow_start=4.0),
    "slow start of one run": History([run(steps=200)], slow_start=4.0, rate=lambda kind, parts: 0.5),
    "busy for the first fifth": History(MIXED, load=lambda elapsed: 3.0 if elapsed < 150 else 1.0),
    "two at a time": History(MIXED, places=2, rate=biased),
    "five at a time": History(MIXED, places=5, rate=lambda kind, parts: 0.6),
    "resumed": History([run(at=60), *MIXED], rate=biased, resumed_at=60),
    "resumed without a word": History([run(steps=1000), run(steps=1000)], rate=lambda kind, parts: 2, resumed_at=900),
    "a long audit": History(MIXED[:6], before=40.0, before_rate=2.5, rate=lambda kind, parts: 2.0),
    "data that were not there": History(MIXED[:6], before=10.0, unplanned=60.0),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_what_is_said_is_within_a_third_of_the_truth(name: str) -> None:
    found = wrong(HISTORIES[name])
    assert all(2 / 3 <= ratio <= 4 / 3 for ratio in found.values()), found


@pytest.mark.parametrize("before_rate", [0.2, 1.0, 4.0])
def test_an_audit_that_took_as_long_as_planned_or_not_is_soon_forgotten(before_rate: float) -> None:
    found = wrong(History(MIXED, before=30.0, before_rate=before_rate), (0.4, 0.5, 0.75))
    assert all(2 / 3 <= ratio <= 4 / 3 for ratio in found.values()), found


@pytest.mark.parametrize("name", ["steady", "wrong for each shape", "two at a time"])
@pytest.mark.parametrize("slower", [2.0, 3.0])
def test_a_machine_that_is_busy_from_the_middle_on_is_noticed(name: str, slower: float) -> None:
    """Nobody knows it before it is so; soon after, what is said is near the truth."""
    looks = HISTORIES[name].looks()
    middle = (looks[-1][0] - looks[0][0]) / 2
    busy = replace(HISTORIES[name], load=lambda elapsed: slower if elapsed > middle else 1.0)
    found = wrong(busy, (0.6, 0.75, 0.9))
    assert all(2 / 3 <= ratio <= 4 / 3 for ratio in found.values()), found


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.2, 5.0),
    of_kind=st.fixed_dictionaries({kind: st.floats(0.7, 1.4) for kind in ("warmup", "step", "evaluation")}),
    of_shape=st.lists(st.floats(0.85, 1.18), min_size=6, max_size=6),
    places=st.integers(1, 4),
    slow_start=st.floats(0.0, 1.5),
)
def test_whatever_the_plan_is_wrong_by(
    rate: float, of_kind: dict[str, float], of_shape: list[float], places: int, slow_start: float
) -> None:
    shapes = list(dict.fromkeys(parts.shape for parts in MIXED))

    def wrong_by(kind: str, parts: RunParts) -> float:
        return rate * of_kind.get(kind, 3.0) * of_shape[shapes.index(parts.shape)]

    found = wrong(History(MIXED, rate=wrong_by, places=places, slow_start=slow_start * rate))
    assert all(2 / 3 <= ratio <= 4 / 3 for ratio in found.values()), found


def test_the_share_that_is_done_grows_and_ends_at_one() -> None:
    shares: list[float] = []

    class Watched(TimeLeft):
        def update(self, name: str, step: int, evaluated: float | None = None) -> None:
            super().update(name, step, evaluated)
            shares.append(self.share())
            assert 0.0 <= self.share(name) <= 1.0 and self.left() >= 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(History.looks.__globals__, "TimeLeft", Watched)
        looks = replace(HISTORIES["two at a time"], before=10.0).looks()
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    assert looks[-1][1] == 0.0


def test_before_anything_is_seen_the_plan_is_said_and_counts_down() -> None:
    clock = Clock()
    left = TimeLeft({"a": run(), "b": run()}, before=30.0, clock=clock)
    planned = 30.0 + 2 * run().planned()
    assert left.left() == pytest.approx(planned) and left.share() == 0.0
    left.prepare("auditing", 0.0, planned=True)
    clock.now += 7.0
    assert left.left() == pytest.approx(planned - 7.0)


def test_a_run_that_ends_early_or_begins_anew_is_counted_as_it_is() -> None:
    clock = Clock()
    left = TimeLeft({"a": run(), "b": run()}, clock=clock)
    left.start("a")
    left.update("a", 0)
    left.end("a")  # failed
    assert left.left() == pytest.approx(run().planned(), rel=0.05) and left.share() == pytest.approx(0.5)
    left.start("b")
    left.update("b", 0)
    clock.now += run().planned() / 2
    left.update("b", 50)
    left.start("b")  # taken up by another process, from the beginning
    assert left.left() == pytest.approx(run().planned(), rel=0.2)
    left.update("somebody else's", 3)
    left.end("somebody else's")
