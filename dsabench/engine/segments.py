"""Segments: the stretches of steps between two times that the host waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dsabench.attention.base import Stage
from dsabench.engine.optimizer import stage_at
from dsabench.engine.step import EAGER_STEPS
from dsabench.spec.run import RunSpec

PIECE_SECONDS = 1.0
"""A segment that would take longer is cut into pieces of this time: a request to stop waits for the end of one."""


def segments(
    spec: RunSpec, start: int, checkpoint_every: int, step_seconds: Callable[[], float | None] = lambda: None
) -> Iterator[tuple[int, int, Stage]]:
    """(first, end, stage) covering steps start..steps-1, cut wherever the host has something to do.

    step_seconds: gives the time of a step, or None while it is not known.
    """
    steps = spec.train.steps
    change = spec.attention.warmup_steps(steps)
    # The first EAGER_STEPS of a stage, and of a resumed run, are a segment of their own, which is not timed.
    cuts = {steps, EAGER_STEPS, start + EAGER_STEPS}
    for begin in (change, *spec.attention.key_changes()):  # another k is another graph
        cuts |= {begin, begin + EAGER_STEPS}
    for every in (spec.train.log_every, spec.train.eval_every, checkpoint_every):
        cuts.update(range(every, steps, every))
    first = start
    for end in sorted(step for step in cuts if start < step <= steps):
        is_short = end - first <= EAGER_STEPS  # eager steps before a capture are one segment
        while first < end:
            seconds = None if is_short else step_seconds()
            last = end if seconds is None else min(end, first + max(1, int(PIECE_SECONDS / max(seconds, 1e-9))))
            yield first, last, stage_at(spec, first)
            first = last
