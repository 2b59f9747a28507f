"""Settings of attentions in which each query keeps k keys: the number, and its schedule."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from dsabench.spec.attention.attention_spec import AttentionSpec


def keys_kept(length: int, top_k: int | None, top_k_ratio: float | None) -> int:
    """k = top_k, or else max(1, top_k_ratio * length rounded half up)."""
    if top_k is not None:
        return int(top_k)
    assert top_k_ratio is not None
    return max(1, math.floor(top_k_ratio * length + 0.5))


class SelectingSpec(AttentionSpec):
    """Settings of an attention in which each query keeps k keys."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (("top_k_ratio", "top_k"),)

    top_k_ratio: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Keys kept for each query, as a share of the length L, rounded half up."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """Keys kept for each query, in place of top_k_ratio; L or more keeps everything."""

    def n_selected(self, length: int) -> int:
        """k by top_k or top_k_ratio."""
        return keys_kept(length, self.top_k, self.top_k_ratio)


class ScheduledSpec(SelectingSpec):
    """Settings of an attention in which each query keeps its k best keys, whose number may change in training."""

    top_k_schedule: list[list[int]] | None = None
    """Pairs [step, k]: k keys are kept before that step, those of the next pair after it, and in the end top_k (or
    top_k_ratio): with top_k: 64, [[200, 256], [400, 128]] keeps 256 keys in the first 200 steps, 128 in the next 200,
    then 64. Steps count the dense warm-up, which attends to everything. An evaluation keeps the keys of the step before
    it. null keeps the same number throughout."""

    @model_validator(mode="after")
    def _is_a_schedule(self) -> Self:
        pairs = self.top_k_schedule
        if pairs is None:
            return self
        whole = bool(pairs) and all(len(pair) == 2 and min(pair) >= 1 for pair in pairs)
        if not whole or any(one[0] >= other[0] for one, other in itertools.pairwise(pairs)):
            raise ValueError(
                f"top_k_schedule = {pairs}; accepted: pairs [step, k] of whole numbers from 1, steps rising, such as "
                "[[200, 256], [400, 128]]"
            )
        return self

    def top_k_at(self, step: int) -> int | None:
        """k of the first pair whose step is yet to come."""
        return next((k for end, k in self.top_k_schedule or [] if step < end), None)

    def key_changes(self) -> tuple[int, ...]:
        """The steps of top_k_schedule."""
        return tuple(step for step, _ in self.top_k_schedule or [])

    def keeping(self, k: int) -> Self:
        """The same attention with k keys in all steps."""
        return self.model_copy(update={"top_k": k, "top_k_ratio": None, "top_k_schedule": None})

    def at_most_keys(self, length: int) -> Self:
        """Of all steps' k the largest."""
        most = max([self.n_selected(length), *(k for _, k in self.top_k_schedule or [])])
        return self if self.top_k_schedule is None else self.keeping(most)
