"""Sliding window: the k nearest tokens, the query's own included. On ordinary text it costs a language model little.

    S[t] = {t - k + 1, ..., t}

Legend: T query, S key.
"""

from __future__ import annotations

from torch import Tensor

from dsabench.attention.ablations.selecting import SelectingAttention, distance
from dsabench.attention.base import AttentionContext
from dsabench.attention.registry import register
from dsabench.spec.attention import SlidingWindowSpec


@register
class SlidingWindow(SelectingAttention):
    """Attention over the nearest k tokens."""

    spec_class = SlidingWindowSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """s - t."""
        return -distance(context).float()
