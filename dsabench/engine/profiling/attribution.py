"""The time of a step by part, from a trace: by GPU kernels where there are any, else by the host's operations."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Literal

from dsabench.engine.profiling.trace import EAGER, REPLAY, Event, Kernel, kernels, timeline, windows
from dsabench.ops.profile_labels import Part

Source = Literal["operators", "eager kernels", "replayed kernels"]

ENOUGH = 0.9
"""Share of a replay's kernel time that must be recognised before its own durations are used."""

_Interval = tuple[float, float]


@dataclass(frozen=True)
class Split:
    """Where a traced step's time went."""

    source: Source
    """What was timed."""

    wall_ms: float
    """Wall time of one traced step; tracing makes it longer than a step is without."""

    busy_share: float
    """Share of that wall time in which at least one kernel (on a CPU: operator) ran; the rest is idle."""

    parts: dict[Part, float]
    """Share of the wall time by part, forward and backward; sums to busy_share."""

    backward: dict[Part, float]
    """The backward pass's share of the wall time, of each part."""

    kernels: int | None = None
    """Kernels launched in a step; None on a CPU."""

    busy_ms: float | None = None
    """Time in a step during which a kernel ran; None on a CPU."""

    recognised: float = 1.0
    """Share of the replays' kernel time whose kernels the eager steps have in the same order."""


def split(events: Sequence[Event]) -> Split:
    """The Split of a trace that has EAGER ranges, and a REPLAY range where steps were replayed."""
    nodes = timeline(events)
    found = kernels(events, nodes)
    eager, replay = windows(events, EAGER), windows(events, REPLAY)
    assert eager, "the trace holds no step"
    if found:
        return _of_kernels(found, eager, replay)
    inside = [node for node in nodes if node.is_operation and _index(eager, node.start) is not None]
    wall = sum(end - start for start, end in eager)
    busy = _union((node.start, node.end) for node in inside if node.operation_around is None)
    spent = [(node.part, node.backward, node.event["dur"] - node.inside) for node in inside]
    return Split("operators", wall / len(eager) / 1e3, busy / wall, *_shares(spent, busy / wall))


def _of_kernels(found: list[Kernel], eager: list[_Interval], replay: list[_Interval]) -> Split:
    steps: list[list[Kernel]] = [[] for _ in eager]
    graphs: dict[int, list[Kernel]] = defaultdict(list)
    for kernel in found:
        index = _index(eager, kernel.launched)
        if index is not None:
            steps[index].append(kernel)
        elif kernel.graph is not None and _index(replay, kernel.launched) is not None:
            graphs[kernel.graph].append(kernel)
    by_eager = [kernel for step in steps for kernel in step]
    if not graphs:
        wall = max(kernel.end for kernel in by_eager) - eager[0][0]
        return _timed("eager kernels", by_eager, by_eager, wall, len(eager), 0.0 if replay else 1.0)
    first = min(graph[0].start for graph in graphs.values())
    last = max(kernel.end for graph in graphs.values() for kernel in graph)
    ran = [kernel for kernel in found if kernel.start >= first and kernel.end <= last]
    known = [kernel for kernel in ran if kernel.graph is None]
    partners: dict[tuple[str, ...], list[Kernel | None]] = {}
    recognised = total = 0.0
    for graph in graphs.values():
        names = tuple(kernel.name for kernel in graph)
        if names not in partners:  # once: every replay has the same kernels
            partners[names] = _in_order(steps[-1], names)
        for kernel, partner in zip(graph, partners[names], strict=True):
            total += kernel.end - kernel.start
            if partner is None:
                known.append(kernel)
            else:
                recognised += kernel.end - kernel.start
                known.append(replace(kernel, part=partner.part, backward=partner.backward))
    share = recognised / total
    if share < ENOUGH:
        return _timed("eager kernels", by_eager, ran, last - first, len(graphs), share)
    return _timed("replayed kernels", known, ran, last - first, len(graphs), share)


def _timed(source: Source, known: list[Kernel], ran: list[Kernel], wall: float, steps: int, recognised: float) -> Split:
    """`ran` says how much of the wall time is busy, `known` how the parts share it."""
    busy = _union((kernel.start, kernel.end) for kernel in ran)
    spent = [(kernel.part, kernel.backward, kernel.end - kernel.start) for kernel in known]
    return Split(
        source,
        wall / steps / 1e3,
        busy / wall,
        *_shares(spent, busy / wall),
        kernels=round(sum(kernel.is_kernel for kernel in ran) / steps),
        busy_ms=busy / steps / 1e3,
        recognised=recognised,
    )


def _in_order(eager: list[Kernel], names: tuple[str, ...]) -> list[Kernel | None]:
    """For each kernel of a graph the eager one at the same place, or None; an eager step has a few more around."""
    there, here = ([_kind(name) for name in side] for side in ([kernel.name for kernel in eager], names))
    found: list[Kernel | None] = [None] * len(names)
    for block in SequenceMatcher(None, there, here, autojunk=False).get_matching_blocks():
        found[block.b : block.b + block.size] = eager[block.a : block.a + block.size]
    return found


def _kind(name: str) -> str:
    """The name of a kernel; of a copy or a fill by the driver one name, whichever way the driver does it: as an
    operation of its own, or, in some of a process's graphs, as a kernel such as `memcpy32_post` or `memset32`."""
    return re.sub(r"^(gpu_)?(memcpy|memset)\d*(_post)?$", r"\2", name)


def _shares(
    spent: Iterable[tuple[Part, bool, float]], busy_share: float
) -> tuple[dict[Part, float], dict[Part, float]]:
    """Time by part, and the backward pass's of it, scaled so that all parts together are busy_share."""
    parts: dict[Part, float] = defaultdict(float)
    backward: dict[Part, float] = defaultdict(float)
    for part, is_backward, duration in spent:
        parts[part] += duration
        backward[part] += duration if is_backward else 0.0
    scale = busy_share / sum(parts.values())
    return {part: scale * time for part, time in parts.items()}, {p: scale * time for p, time in backward.items()}


def _index(intervals: list[_Interval], time: float) -> int | None:
    return next((i for i, (start, end) in enumerate(intervals) if start <= time <= end), None)


def _union(intervals: Iterable[_Interval]) -> float:
    """Length of what the intervals cover together."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered
