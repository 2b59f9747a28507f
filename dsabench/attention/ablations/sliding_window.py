"""Sliding window: the k nearest tokens, the query's own included. On ordinary text it costs a language model little.

    S[t] = {t - k + 1, ..., t}

Legend: B batch, T query, S key, K slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsabench.attention.ablations.selecting import PositionalAttention, ascending_keys, distance
from dsabench.attention.base import AttentionContext
from dsabench.attention.dsa import reference
from dsabench.attention.registry import register
from dsabench.spec.attention import SlidingWindowSpec


@register
class SlidingWindow(PositionalAttention):
    """Attention over the nearest k tokens."""

    spec_class = SlidingWindowSpec

    def scores(self, q_BTHD: Tensor, k_BSGD: Tensor, context: AttentionContext) -> Tensor:
        """s - t."""
        return -distance(context).float()

    def keys(self, first_BT: Tensor, k: int) -> Tensor:
        """The last of those up to t."""
        slot_K, t_T1, count_BT1 = ascending_keys(first_BT, k)
        return torch.where(slot_K < count_BT1, t_T1 + 1 - count_BT1 + slot_K, reference.EMPTY)
