"""Epochs: how many times a run sees its training text."""

from __future__ import annotations

import math
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
