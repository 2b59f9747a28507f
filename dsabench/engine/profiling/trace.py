"""A Chrome trace of the PyTorch profiler, with the part of the training step that each operation belongs to.

An operation of the forward pass belongs to the innermost `part` range around it. One of the backward pass belongs to
the part of the forward operation that has its autograd sequence number. A GPU kernel belongs where the call that
launched it stands; the two share a correlation id, whoever launched it (PyTorch, a library, Triton).

Times are microseconds on the trace's clock.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from dsabench.ops.profile_labels import PREFIX, Part

EAGER, REPLAY = "dsabench: one eager step", "dsabench: replayed steps"
"""Names of the ranges that profiler.py puts around the steps that it traces."""

Event = dict[str, Any]

_BACKWARD = "autograd::engine::evaluate_function: "
_CALLS, _WORK = ("cuda_runtime", "cuda_driver"), ("kernel", "gpu_memcpy", "gpu_memset")
_ROUNDING = 1e-3
"""Times in a trace have three decimals."""


@dataclass
class Node:
    """An operation, a named range or a launching call on the timeline of its thread."""

    event: Event
    parent: Node | None
    part: Part
    backward: bool
    inside: float = field(default=0.0, init=False)
    """Time of the operations directly inside."""

    @property
    def start(self) -> float:
        """When it began."""
        return float(self.event["ts"])

    @property
    def end(self) -> float:
        """When it ended."""
        return float(self.event["ts"] + self.event["dur"])

    @property
    def sequence(self) -> int | None:
        """Autograd's sequence number, where the trace has one."""
        number = self.event["args"].get("Sequence number", -1)
        return int(number) if number >= 0 else None

    @property
    def is_operation(self) -> bool:
        """Neither a named range nor a launching call."""
        return bool(self.event["cat"] == "cpu_op")

    @property
    def operation_around(self) -> Node | None:
        """The innermost operation that this lies in."""
        node = self.parent
        while node is not None and not node.is_operation:
            node = node.parent
        return node


@dataclass(frozen=True)
class Kernel:
    """A kernel, copy or fill that the GPU executed."""

    name: str
    start: float
    end: float
    launched: float
    """When the host launched it; its own start where the trace does not say."""

    graph: int | None
    """Which launch of a CUDA graph it came from (a correlation id), or None when it was launched by itself."""

    part: Part
    """Of one in a graph, the launch's: it says nothing of what the kernel computes."""

    backward: bool
    is_kernel: bool


def read(path: Path) -> list[Event]:
    """The events of a trace that have a duration."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and "dur" in event]


def windows(events: Iterable[Event], name: str) -> list[tuple[float, float]]:
    """(start, end) of every range of this name on the host, in order."""
    found = [event for event in events if event["name"] == name and event["cat"] == "user_annotation"]
    return sorted((float(event["ts"]), float(event["ts"] + event["dur"])) for event in found)


def timeline(events: Iterable[Event]) -> list[Node]:
    """What the host did, with each operation's part; threads one after the other, each in order of time."""
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event["cat"] in ("cpu_op", "user_annotation", *_CALLS):
            threads[event["tid"]].append(event)
    nodes = [node for thread in threads.values() for node in _nested(thread)]
    # Autograd numbers its nodes as they are made: of the operations that saw a number as the next one, the last to
    # start made the node. What a backward pass computes again has numbers of its own thread.
    made_by: dict[int, Node] = {}
    for node in nodes:
        number = node.sequence
        if number is not None and not node.backward:
            before = made_by.get(number)
            if before is None or before.start <= node.start:
                made_by[number] = node
    _follow(nodes, {number: node.part for number, node in made_by.items()})
    return nodes


def kernels(events: Iterable[Event], nodes: Iterable[Node]) -> list[Kernel]:
    """What the GPU did, in order of time, with the part of whoever launched it."""
    calls: dict[int, Node] = {}
    operations: dict[int, Node] = {}
    for node in nodes:
        arguments = node.event["args"]
        if node.event["cat"] in _CALLS and "correlation" in arguments:
            calls[arguments["correlation"]] = node
        elif "External id" in arguments:
            operations[arguments["External id"]] = node
    found = []
    for event in events:
        if event["cat"] not in _WORK:
            continue
        correlation = event["args"].get("correlation", -1)
        call = calls.get(correlation)
        graph = call is not None and "GraphLaunch" in call.event["name"]
        place = call
        if not graph and (call is None or call.parent is None):
            # The call's thread has no operation around it: the profiler's own link is the next best.
            place = operations.get(event["args"].get("External id", -1), call)
        start = float(event["ts"])
        found.append(
            Kernel(
                name=event["name"] if event["cat"] == "kernel" else event["cat"],
                start=start,
                end=start + float(event["dur"]),
                launched=start if call is None else call.start,
                graph=correlation if graph else None,
                part="other" if place is None else place.part,
                backward=place is not None and place.backward,
                is_kernel=event["cat"] == "kernel",
            )
        )
    return sorted(found, key=lambda kernel: kernel.start)


def _nested(events: list[Event]) -> Iterator[Node]:
    """The events of one thread in order of time, each with what it lies in; parts as the forward pass has them."""
    stack: list[Node] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        while stack and stack[-1].end <= event["ts"] + _ROUNDING:
            stack.pop()
        parent = stack[-1] if stack else None
        part = _named(event) or (parent.part if parent else "other")
        node = Node(
            event, parent, part, event["name"].startswith(_BACKWARD) or (parent is not None and parent.backward)
        )
        around = node.operation_around if node.is_operation else None
        if around is not None:
            around.inside += float(event["dur"])
        stack.append(node)
        yield node


def _follow(nodes: list[Node], parts: dict[int, Part]) -> None:
    """Give the backward pass the parts of the forward operations that it belongs to."""
    last: dict[Any, Part] = {}
    for node in nodes:  # parents come before what lies in them
        event = node.event
        if event["name"].startswith(_BACKWARD):
            # One without a number adds a gradient to its parameter, at once after the function that computed it.
            before, number = last.get(event["tid"], "other"), node.sequence
            node.part = before if number is None else parts.get(number, "other")
            last[event["tid"]] = node.part
        elif node.parent is not None:
            node.part = _named(event) or node.parent.part


def _named(event: Event) -> Part | None:
    """The part that a range names."""
    name = event["name"].removeprefix(PREFIX)
    known: tuple[Part, ...] = get_args(Part)
    return next((part for part in known if part == name), None) if event["cat"] == "user_annotation" else None
