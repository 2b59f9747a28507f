"""The boundaries that a model is audited at: positions up to which tokens are left as they were."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

from dsabench.audit.causality import Trial, later
from dsabench.spec.run import RunSpec

CONSECUTIVE = 8
"""Boundaries in a row at full size: no pattern over positions that repeats within so many slips through."""

FACTORS = (3, 25, 15, 9, 7, 125)
"""Where blocks of so many times a power of two end, blocks of most lengths end: for each of these factors the last
multiple in the window of its product with the largest power of two that fits is a boundary."""

SHORT = 32
"""Longest blocks whose ends the small copies hold. Of longer ones that an attention's settings name, one end is a
boundary at full size."""


def boundaries_of(length: int, k: int | None, spec: RunSpec) -> tuple[list[int], list[int]]:
    """(consecutive, others) at full size. Consecutive: eight in a row across the largest power of two, where blocks
    end. Others: k-1, k, k+1, the first, the last, a random one, and the ends of blocks of many lengths, among them
    those that the attention's settings name. The same for the same attention and length."""
    key = f"{length} {spec.attention.model_dump_json()}".encode()
    draw = random.Random(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
    last = length - 2
    middle = _power_of_two(last) if last >= 16 else length // 2
    start = max(0, min(middle - CONSECUTIVE // 2, last - CONSECUTIVE + 1))
    consecutive = list(range(start, min(start + CONSECUTIVE, last + 1)))
    wanted = [0, last, draw.randint(0, last)]
    wanted += [k - 1, k, k + 1] if k is not None else [draw.randint(0, last) for _ in range(3)]
    layers = spec.attention.distinct()
    wanted += [n for one in layers if (own := one.n_selected(length)) not in (None, k) for n in (own - 1, own, own + 1)]
    blocks = [n for one in layers for n in _whole_numbers(one.model_dump()) if SHORT < n <= last + 1]
    for factor in FACTORS[: 2 if length > 8192 else None]:  # a long window takes minutes
        blocks += [factor * _power_of_two((last + 1) // factor)] if factor <= last + 1 else []
    wanted += [(last + 1) // size * size - 1 for size in blocks]
    others = sorted({t for t in wanted if 0 <= t <= last} - set(consecutive))
    return consecutive, others


def _whole_numbers(values: dict[str, Any]) -> Iterator[int]:
    for value in values.values():
        if isinstance(value, dict):
            yield from _whole_numbers(value)
        elif type(value) is int:  # a bool is an int, too
            yield value


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def other_rows(length: int) -> list[Trial]:
    """Two rows in which nothing is changed, between two in which everything is."""
    all_of_it, nothing = later(-1, length), later(length - 1, length)
    return [all_of_it, nothing, nothing, all_of_it]
