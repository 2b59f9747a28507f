"""Difficulty by step: how large a task is and over how much of the window it is spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsabench.spec.task_settings import TaskSettings


@dataclass(frozen=True)
class Level:
    """A difficulty; neither number ever falls in training."""

    size: int
    """Pairs, needles, symbols or digits."""

    span: int
    """Inputs that are used, the first ones of the window: tokens 0..span stand in it, the rest is padding."""


def full_level(settings: TaskSettings, length: int) -> Level:
    """The difficulty of evaluation, and of training after the curriculum."""
    return Level(settings.size, length)


def level(settings: TaskSettings, length: int, step: int, steps: int) -> Level:
    """The difficulty of step 0..steps-1.

        p = step / min(share * steps, steps - 1), at most 1
        linear    size = start + p * (full - start)
        doubling  size = min(full, start * 2^floor(p * D)), D the doublings after which size and span are both full

    and so the span, from start_span to length; it is at least what the size takes.
    """
    curriculum, full = settings.curriculum, full_level(settings, length)
    ramp = 0.0 if curriculum is None else min(curriculum.share * steps, steps - 1)
    if curriculum is None or step >= ramp:
        return full
    start = settings.start
    start_span = curriculum.start_span or max(
        settings.tokens_needed(start) - 1, math.ceil(length * start / settings.size)
    )
    progress = step / ramp
    if curriculum.growth == "linear":
        size = start + math.floor(progress * (full.size - start))
        span = start_span + math.floor(progress * (full.span - start_span))
    else:
        doublings = max(_doublings(start, full.size), _doublings(start_span, full.span))
        factor = 2 ** math.floor(progress * doublings)
        size, span = min(full.size, start * factor), min(full.span, start_span * factor)
    return Level(size, max(span, settings.tokens_needed(size) - 1))


def _doublings(start: int, full: int) -> int:
    """Doublings of start that reach full."""
    return max(0, (-(-full // start) - 1).bit_length())
