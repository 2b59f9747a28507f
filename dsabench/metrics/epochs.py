"""Epochs: how many times a run sees its training text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def epochs(tokens: Any, text_tokens: Any) -> float | None:
    """tokens / text_tokens: tokens that all steps train on, over those of the training text.

    None unless both are positive finite numbers: of a task, which repeats no text, and of a record that lacks one.
    """
    known = [value for value in (tokens, text_tokens) if isinstance(value, int | float) and type(value) is not bool]
    if len(known) < 2 or not all(0 < value < math.inf for value in known):
        return None
    try:
        return float(known[0] / known[1])
    except OverflowError:  # whole numbers beyond every float
        return None


def recorded_epochs(summary: Mapping[str, Any], environment: Mapping[str, Any]) -> float | None:
    """`epochs` of a run by its record. A run that starts from a trained model goes on in that one's text: the steps
    behind it count, too."""
    tokens, start = summary.get("tokens"), environment.get("start")
    known = [tokens, summary.get("steps"), start.get("steps") if isinstance(start, Mapping) else None]
    if all(type(value) is int and value > 0 for value in known):
        own, steps, behind = (min(value, 2**62) for value in known if isinstance(value, int))
        return epochs(own * (1 + behind / steps), summary.get("text_tokens"))
    return epochs(tokens, summary.get("text_tokens"))
